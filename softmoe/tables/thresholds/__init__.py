"""Trained models at several thresholds: quality against compute and time."""
