"""Deterministic cost model: seconds of each part of speculative decoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.decoding.traces.trace import Floats, Ints
from trainenv.tools import checks
from trainenv.types import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Seconds of each part of one block of speculative decoding, at a fixed batch size.

    A block is some draft steps and one call of the target. On one device

        seconds = draft steps · draft_step + target_call[n] + block [+ drafting] [+ judging]

    for n tokens given to the target: the newest token of the text and the drafted ones. `drafting`
    counts where the draft was called, and `judging` where it proposed a token.

    Attributes:
        target_call: Seconds of a target call with 1, 2, … new tokens; the last value, and the slope
            before it, serve for longer calls.
        draft_step: Seconds of one draft step, sampling included.
        block: Seconds of everything else in a block: sampling and bookkeeping.
        drafting: Seconds that calling the draft takes in addition to its steps.
        judging: Seconds of the rule's decision about drafted tokens.
        alone: Seconds of a step of the target without a draft, sampling included; by default a
            call with one token.
        prompt: Seconds that a text takes more than its blocks: reading of its prompt.
    """

    target_call: tuple[float, ...]
    draft_step: float
    block: float = 0.0
    drafting: float = 0.0
    judging: float = 0.0
    alone: float | None = None
    prompt: float = 0.0

    def __post_init__(self) -> None:
        if not self.target_call:
            raise UserError("target_call must have at least one time, found none; measure one")
        for seconds in self.target_call:
            checks.number("target_call", seconds, above=0)
        for name in ("draft_step", "block", "drafting", "judging", "prompt"):
            checks.number(name, getattr(self, name), least=0)
        if self.alone is not None:
            checks.number("alone", self.alone, above=0)

    @classmethod
    def of_ratio(cls, ratio: float, *, per_token: float = 0.0, target: float = 1.0) -> CostModel:
        """Return the textbook model: a draft step costs `ratio` of a target call.

        Args:
            ratio: Draft step as a share of a target call, at least 0.
            per_token: Growth of a target call with each token after the first, as a share of it.
            target: Seconds of a target call with one token.
        """
        calls = tuple(target * (1 + per_token * extra) for extra in range(2))
        return cls(target_call=calls, draft_step=ratio * target)

    @property
    def ratio(self) -> float:
        """Draft step as a share of a target call with one token."""
        return self.draft_step / self.target_call[0]

    @property
    def target_only(self) -> float:
        """Seconds a token of the target without a draft."""
        if self.alone is None:
            return self.target_call[0]
        return self.alone

    def calls(self, tokens: Ints) -> Floats:
        """Return the seconds of target calls with these numbers of new tokens.

        Args:
            tokens: Numbers of new tokens, at least 1, an array of any shape.
        """
        known = len(self.target_call)
        table = np.array(self.target_call, np.float64)
        seconds: Floats = table[np.minimum(tokens, known) - 1]
        if known == 1:
            return seconds
        extra: Floats = np.maximum(tokens - known, 0) * float(table[-1] - table[-2])
        return seconds + extra
