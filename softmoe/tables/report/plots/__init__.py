"""Plots as SVG, from numbers and words alone."""
