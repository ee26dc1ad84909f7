"""The formats: one table a file."""
