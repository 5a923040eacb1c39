"""Training objectives, one file each. An objective is called as `objective(model, micro_batch)`; see `trainenv.types.Objective`."""

from trainenv.objectives.lm import NextToken

__all__ = ["NextToken"]
