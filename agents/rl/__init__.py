"""TODO face of agents/rl."""
