"""Data sets that any machine can make: python -m softmoe.data.prepare NAME."""
