"""What models compute and hold, and what devices can: FLOPs, chips."""
