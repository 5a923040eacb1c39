"""TODO face of trainenv/distributed."""
