"""TODO face of trainenv/report/drawing."""
