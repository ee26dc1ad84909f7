"""Optimizers, schedules, and parameters that a rule moves."""
