"""TODO face of trainenv/config."""
