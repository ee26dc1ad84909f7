"""How what a router decided is carried out, on one device or many."""
