"""A trained dense model split into experts: ours, of no paper."""
