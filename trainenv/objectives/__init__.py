"""Training objectives, one file each.

The contract is `trainenv.types.Objective`: a callable that takes a model and a micro-batch and
returns the loss.

A micro-batch of plain text is a tensor of tokens [B, T + 1]. One of labelled samples (a prompt, a
solution, and whether the solution is right) is a mapping:

| key | value |
|---|---|
| `tokens` | int64 [B, T + 1]: prompt and solution, padded on the right with any token |
| `labels` | int64 [B, T + 1]: the same tokens, with −100 at those of the prompt and the padding |
| `reward` | float32 [B]: 1 for a right solution, 0 for a wrong one, NaN where that is unknown |

`labels[b, t]` is the label of the place of `tokens[b, t]`, as in transformers: the objective shifts
it. The first token of a row is never predicted. `labels` and `reward` may be left out: every token
is then a label, and no reward is known. `input_ids` is read where `tokens` is missing. The length
of a sample is the place of its last label.
"""

from trainenv.objectives.mtp import MTP
from trainenv.objectives.next_label import NextLabel
from trainenv.objectives.next_token import NextToken
from trainenv.objectives.span_corruption import SpanCorruption

__all__ = ["MTP", "NextLabel", "NextToken", "SpanCorruption"]
