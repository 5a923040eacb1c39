"""TODO face of trainenv/composition."""
