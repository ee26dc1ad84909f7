"""Images from a named source to global batches: sources, transforms."""
