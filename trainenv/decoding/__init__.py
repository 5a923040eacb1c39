"""Speculative decoding: traces of model pairs and the cost of thresholds."""
