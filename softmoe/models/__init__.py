"""Models built from the MoE layers."""
