"""Training: state, step, loop and what they write."""
