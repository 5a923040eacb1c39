"""Next-token prediction: the mean cross-entropy, in nats per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Mean cross-entropy of each token given those before it.

    The model takes int64 tokens [B, T] and returns logits [B, T, V], bare or as the `logits` of a
    transformers output.
    """

    def __call__(self, model: nn.Module, tokens: Tensor, /) -> Tensor:
        """Return the loss of `tokens` [B, T + 1] as a scalar, in nats per token.

        It is computed in float32, also under autocast.
        """
        output = model(tokens[:, :-1])
        logits = getattr(output, "logits", output)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
