"""Training objectives, one file each.

The contract is `trainenv.types.Objective`: a callable that takes a model and tokens and returns the
loss.
"""

from trainenv.objectives.next_token import NextToken
from trainenv.objectives.span_corruption import SpanCorruption

__all__ = ["NextToken", "SpanCorruption"]
