"""Training objectives, one file each. Their contract is `trainenv.types.Objective`."""

from trainenv.objectives.lm import NextToken

__all__ = ["NextToken"]
