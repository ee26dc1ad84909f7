"""Labelled images: sources by name, transforms, batches."""
