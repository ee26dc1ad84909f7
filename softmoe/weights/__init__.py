"""Weights of other libraries: read into our models, and written from them."""
