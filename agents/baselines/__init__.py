"""TODO face of agents/baselines."""
