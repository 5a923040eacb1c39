"""TODO face of trainenv/verification."""
