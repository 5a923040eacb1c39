"""TODO face of trainenv/trackers."""
