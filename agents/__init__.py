"""Agents: whatever acts in the environment."""
