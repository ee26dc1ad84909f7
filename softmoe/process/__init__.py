"""One process and its job: launch, join, watch over the others, stop."""
