"""Training objectives, one file each. Their contract is `trainenv.types.Objective`."""

from trainenv.objectives.next_token import NextToken

__all__ = ["NextToken"]
