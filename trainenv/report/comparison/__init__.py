"""TODO face of trainenv/report/comparison."""
