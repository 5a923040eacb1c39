"""Big Little Decoder (Kim 2023, arXiv:2302.07863): thresholds instead of rejection sampling.

The draft falls back to the target before the first token at which its largest probability is below
`fallback_threshold`. The target then rolls back to the first drafted token with

    −ln p_target > rollback_threshold

and puts a token of its own in its place. The text does not have the distribution of the target;
`trainenv.decoding.distances` measures how far it is.

Deviations from the authors' code, which is greedy and has one row:
- *Sampling*: drafted tokens are drawn from the draft, the others from the target, at any
  temperature and top-p; both thresholds look at the softmax at temperature 1.
- *First token*: the draft may propose it; in the authors' code the target always generates it.

As in the authors' code, a token stays if the target would choose the same one for certain, and the
target adds a token after an accepted draft of full length, unless `bonus` is False.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainenv.decoding.contract import Block, Settings


@dataclass(frozen=True, kw_only=True)
class Lossy:
    """Fallback and rollback by thresholds.

    Limits, where the target is greedy: a fallback threshold above 1 or a rollback threshold of 0
    gives the target's text; a fallback threshold of 0 with an infinite rollback threshold and
    `bonus=False` gives the draft's.

    Args:
        bonus: True to add a token of the target after a draft of full length that was accepted.
    """

    keeps_distribution: ClassVar[bool] = False
    drafts_ahead: ClassVar[bool] = False

    bonus: bool = True

    def acceptance(self, block: Block, settings: Settings, /) -> Tensor:
        """Return 1 for each token that stays, 0 for the others, in the shape of `block.tokens`."""
        nats = -block.pick(block.logits.log_softmax(dim=-1))
        certain = block.pick(block.p) >= 1
        return ((nats <= settings.rollback_threshold) | certain).to(block.p.dtype)

    def replacement(self, p: Tensor, q: Tensor | None, tokens: Tensor, /) -> Tensor:
        """Return the distribution of the target, [B, V]."""
        return p
