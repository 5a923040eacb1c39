"""TODO face of trainenv/training."""
