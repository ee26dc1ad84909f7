"""From text to tokens and back: a file for each kind, and `registry`."""
