"""TODO face of trainenv/rollouts."""
