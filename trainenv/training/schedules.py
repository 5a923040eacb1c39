"""Learning-rate schedules, defined over the budget instead of over steps.

A run may spend compute on branches that are discarded. The end of its `Horizon` then moves closer,
and the remaining annealing is compressed into the remaining steps: the run still ends annealed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainenv.config.schema import ScheduleConfig
from trainenv.types import Schedule


@dataclass(frozen=True)
class Horizon:
    """Progress of the annealing, linear from (`since`, `done`) to (`end`, 1).

    Args:
        end: Step at which the budget is spent.
        since: Step from which progress counts: the end of the warm-up, later the step of the last
            change of `end`.
        done: Progress at `since`.
    """

    end: int
    since: int = 0
    done: float = 0.0

    def progress(self, step: int) -> float:
        """Return the share of the annealing that is done after `step` steps, in [0, 1]."""
        if step >= self.end:
            return 1.0
        if step <= self.since:
            return self.done
        return self.done + (1 - self.done) * (step - self.since) / (self.end - self.since)

    def spend(self, step: int, steps: int) -> Horizon:
        """Return the horizon after the compute of `steps` steps was spent elsewhere, at `step`.

        Progress stays continuous.
        """
        return Horizon(
            end=max(step, self.end - steps), since=max(step, self.since), done=self.progress(step)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"end": self.end, "since": self.since, "done": self.done}


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up over `warmup` steps, then half a cosine from 1 to `final`.

    Loshchilov & Hutter 2017, without restarts.
    """

    warmup: int
    final: float

    def __call__(self, step: int, progress: float, /) -> float:
        return _warm(step, self.warmup) * (
            self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        )


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warm-up, a plateau at 1, then 1 − √ decay to `final` over the last `decay_share`.

    Hu 2024; Hägele 2024.
    """

    warmup: int
    final: float
    decay_share: float

    def __call__(self, step: int, progress: float, /) -> float:
        decayed = max(0.0, 1 - (1 - progress) / self.decay_share)
        return _warm(step, self.warmup) * (1 - (1 - self.final) * math.sqrt(decayed))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up, then 1."""

    warmup: int

    def __call__(self, step: int, progress: float, /) -> float:
        return _warm(step, self.warmup)


def make(config: ScheduleConfig) -> Schedule:
    """Return the schedule of a configuration."""
    if config.kind == "cosine":
        return Cosine(warmup=config.warmup, final=config.final)
    if config.kind == "wsd":
        return WarmupStableDecay(
            warmup=config.warmup, final=config.final, decay_share=config.decay_share
        )
    return Constant(warmup=config.warmup)


def warmth(step: int, reset_at: int | None, steps: int) -> float:
    """Return the factor on the learning rate after a momentum reset.

    1 − 0.99 · half a cosine over `steps` steps (Huang 2025, SPAM).
    """
    if reset_at is None or step - reset_at >= steps:
        return 1.0
    return 1 - 0.99 * 0.5 * (1 + math.cos(math.pi * (step - reset_at) / steps))


def _warm(step: int, warmup: int) -> float:
    if warmup:
        return min(1.0, (step + 1) / warmup)
    return 1.0
