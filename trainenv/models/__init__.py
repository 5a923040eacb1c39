"""TODO face of trainenv/models."""
