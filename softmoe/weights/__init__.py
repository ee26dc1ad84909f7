"""Trained weights in another form."""
