"""Speculative sampling (Leviathan 2022, arXiv:2211.17192; Chen 2023, arXiv:2302.01318).

A drafted token x is accepted with probability min(1, p(x) / q(x)). The first that is not is
replaced by a token drawn from (p − q)₊, normalised; after an accepted draft comes a token of p. The
text then has the distribution of the target, whatever the draft.

This holds for every way to end a draft that looks at the tokens before the end alone. Ending before
a token where the draft's *largest* probability is low is such a way. Dropping a token because its
*own* probability is low is not: which tokens are seen by the rule would then depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainenv.decoding.contract import Block, Settings


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Rejection that keeps the target's distribution; the rollback threshold is not used."""

    keeps_distribution: ClassVar[bool] = True
    drafts_ahead: ClassVar[bool] = False

    @property
    def bonus(self) -> bool:
        """True: the token of the target after an accepted draft costs nothing."""
        return True

    def acceptance(self, block: Block, settings: Settings, /) -> Tensor:
        """Return min(1, p / q) of each token, in the shape of `block.tokens`."""
        p = block.pick(block.p)
        if block.q is None:
            return p
        return (p / block.pick(block.q)).clamp(max=1.0).nan_to_num(0.0)  # q is 0 if not drafted

    def replacement(self, p: Tensor, q: Tensor | None, tokens: Tensor, /) -> Tensor:
        """Return (p − q)₊, normalised, [B, V]."""
        if q is None:
            rest = p.scatter(-1, tokens.unsqueeze(-1), 0.0)
        else:
            rest = (p - q).clamp(min=0.0)
        total = rest.sum(dim=-1, keepdim=True)
        # p and q equal but for rounding: a rejection was impossible but for rounding, too
        return (rest / total).where(total > 0, p)
