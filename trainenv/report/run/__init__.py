"""TODO face of trainenv/report/run."""
