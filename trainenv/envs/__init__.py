"""Training as an environment: a real run, and its synthetic twin."""
