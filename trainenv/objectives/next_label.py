"""Next-token prediction over labelled tokens: the mean cross-entropy, in nats per label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NextLabel:
    """Mean cross-entropy of each labelled token given those before it.

    It trains on solutions only: tokens of prompts and padding have the label −100.
    """

    def __call__(self, model: nn.Module, micro: Mapping[str, Tensor], /) -> Tensor:
        """Return the loss of a micro-batch as a scalar, in nats per label.

        It is computed in float32, also under autocast.

        Args:
            model: Module that takes int64 tokens [B, T] and returns logits [B, T, V], bare or as
                the `logits` of a transformers output.
            micro: Mapping with `tokens` and `labels`, both int64 [B, T + 1].
        """
        output = model(micro["tokens"][:, :-1])
        logits = getattr(output, "logits", output)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), micro["labels"][:, 1:].flatten())
