"""Settings of decoding: sampling, the two thresholds, and the length of a draft."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainenv.tools.checks import number, whole
from trainenv.types import UserError

MAX_K = 16
"""Most tokens that can be drafted for one target call."""
FALLBACK_RANGE = (0.05, 0.95)
"""Interval in which the fallback threshold is searched, as a probability."""


def rollback_range(k: int) -> tuple[float, float]:
    """Return the interval in which the rollback threshold is searched, in nats: [1, K].

    A token with a probability below e⁻⁸ (0.0003) is rarely drafted. Therefore thresholds above
    about 8 to 10 nats accept everything, and most of the interval is flat where K is 16.
    """
    return 1.0, float(max(k, 1))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings that turn logits into the distribution that is sampled from.

    Args:
        temperature: Divisor of the logits, at least 0; 0 takes the most likely token (greedy).
        top_p: Probability mass that stays, above 0 and at most 1: the smallest set of the most
            likely tokens that reaches it. 1 keeps all tokens.

    Raises:
        UserError: A value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", number("temperature", self.temperature, least=0))
        object.__setattr__(self, "top_p", number("top_p", self.top_p, above=0, most=1))

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always taken."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)
"""Sampling that always takes the most likely token."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Thresholds and length of a draft.

    Both thresholds look at the models' softmax at temperature 1 with all tokens, so they mean the
    same at any `Sampling`, greedy included.

    Args:
        fallback_threshold: Probability, at least 0: drafting ends before the first token at which
            the draft's largest probability is below it. 0 never ends a draft, and a value above 1
            ends each one before its first token.
        rollback_threshold: Largest −ln p_target of a drafted token that stays, in nats, at least 0;
            infinity keeps all. Only lossy rules use it. Above about 8 to 10 it keeps nearly all.
        k: Most tokens drafted for one target call, K; from 1 to 16.

    Raises:
        UserError: A value is out of range.
    """

    fallback_threshold: float = 0.4
    rollback_threshold: float = 3.0
    k: int = 8

    def __post_init__(self) -> None:
        fallback = number("fallback_threshold", self.fallback_threshold, least=0)
        rollback = self.rollback_threshold
        if rollback != math.inf:
            rollback = number("rollback_threshold", rollback, least=0)
        k = whole("k", self.k, least=1)
        if k > MAX_K:
            raise UserError(f"k must be from 1 to {MAX_K}, found {k}; draft fewer tokens a call")
        object.__setattr__(self, "fallback_threshold", fallback)
        object.__setattr__(self, "rollback_threshold", rollback)
        object.__setattr__(self, "k", k)

    @classmethod
    def searched(
        cls, *, fallback_threshold: float, rollback_threshold: float, k: int = MAX_K
    ) -> Settings:
        """Return settings inside the intervals of the search.

        Args:
            fallback_threshold: Probability in `FALLBACK_RANGE`.
            rollback_threshold: Nats in `rollback_range(k)`.
            k: Most tokens drafted for one target call, from 1 to 16.

        Raises:
            UserError: A value is outside its interval.
        """
        made = cls(
            fallback_threshold=fallback_threshold, rollback_threshold=rollback_threshold, k=k
        )
        for name, interval in (
            ("fallback_threshold", FALLBACK_RANGE),
            ("rollback_threshold", rollback_range(made.k)),
        ):
            number(name, getattr(made, name), least=interval[0], most=interval[1])
        return made

    @classmethod
    def with_probability(
        cls, *, rollback_probability: float, fallback_threshold: float = 0.4, k: int = 8
    ) -> Settings:
        """Return settings whose rollback threshold is given as a probability, −ln of it in nats.

        Args:
            rollback_probability: Least p_target of a drafted token that stays, from 0 (all stay)
                to 1.
            fallback_threshold: Probability below which the draft ends, at least 0.
            k: Most tokens drafted for one target call, from 1 to 16.

        Raises:
            UserError: A value is out of range.
        """
        found = number("rollback_probability", rollback_probability, least=0, most=1)
        rollback = math.inf
        if found > 0:
            rollback = abs(math.log(found))
        return cls(fallback_threshold=fallback_threshold, rollback_threshold=rollback, k=k)

    @property
    def rollback_probability(self) -> float:
        """Least p_target of a drafted token that stays, e^−`rollback_threshold`."""
        return math.exp(-self.rollback_threshold)
