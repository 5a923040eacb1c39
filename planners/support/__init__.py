"""TODO face of planners/support."""
