"""Labelled images: sources by name, transforms, batches of bytes, floats."""
