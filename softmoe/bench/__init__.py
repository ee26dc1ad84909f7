"""How fast layers are on the machine at hand, and how far from its limits."""
