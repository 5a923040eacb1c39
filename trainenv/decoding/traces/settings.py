"""Settings of a replay: the rule, the two thresholds and the draft length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainenv.tools import checks

RuleName = Literal["exact", "lossy", "pipelined"]
RULES: tuple[RuleName, ...] = ("exact", "lossy", "pipelined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of speculative decoding.

    Attributes:
        fallback_threshold: Drafting stops before a token whose distribution has a largest
            probability below this.
        rollback_threshold: −log p of a draft token above which the lossy rule refuses it, nats.
        k: Greatest number of draft tokens in a block, at least 1.
        rule: Rule of verification.
    """

    fallback_threshold: float = 0.4
    rollback_threshold: float = 4.0
    k: int = 16
    rule: RuleName = "exact"

    def __post_init__(self) -> None:
        checks.number("fallback_threshold", self.fallback_threshold, least=0)
        checks.number("rollback_threshold", self.rollback_threshold, least=0)
        checks.whole("k", self.k, least=1)
        checks.choice("rule", self.rule, RULES)
