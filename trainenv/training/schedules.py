"""Learning-rate schedules, defined over the budget rather than over steps.

A run may spend compute on branches that are thrown away. Its `Horizon` then comes nearer, and the
annealing that is left is compressed into the steps that are left: the run still ends annealed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainenv.config.schema import ScheduleConfig
from trainenv.types import Schedule


@dataclass(frozen=True)
class Horizon:
    """Progress of the annealing: linear from (`since`, `done`) to (`end`, 1).

    Args:
        end: the step at which the budget is spent.
        since: the step from which progress counts: the end of the warm-up, later that of the last
            change of `end`.
        done: progress at `since`.
    """

    end: int
    since: int = 0
    done: float = 0.0

    def progress(self, step: int) -> float:
        """Share of the annealing done after `step` steps, in [0, 1]."""
        if step >= self.end:
            return 1.0
        if step <= self.since:
            return self.done
        return self.done + (1 - self.done) * (step - self.since) / (self.end - self.since)

    def spend(self, step: int, steps: int) -> Horizon:
        """The horizon after `steps` steps' worth of budget went elsewhere, at `step`.

        Progress stays continuous.
        """
        return Horizon(
            end=max(step, self.end - steps), since=max(step, self.since), done=self.progress(step)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"end": self.end, "since": self.since, "done": self.done}


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up over `warmup` steps, then half a cosine from 1 to `final` (Loshchilov & Hutter 2017, without restarts)."""

    warmup: int
    final: float

    def __call__(self, step: int, progress: float, /) -> float:
        return _warm(step, self.warmup) * (
            self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        )


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warm-up, a plateau at 1, then 1 − √ decay to `final` over the last `decay_share` (Hu 2024; Hägele 2024)."""

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
    """The schedule of a configuration."""
    if config.kind == "cosine":
        return Cosine(warmup=config.warmup, final=config.final)
    if config.kind == "wsd":
        return WarmupStableDecay(
            warmup=config.warmup, final=config.final, decay_share=config.decay_share
        )
    return Constant(warmup=config.warmup)


def warmth(step: int, reset_at: int | None, steps: int) -> float:
    """Factor on the learning rate after a momentum reset: 1 − 0.99 · half a cosine over `steps` steps (Huang 2025, SPAM)."""
    if reset_at is None or step - reset_at >= steps:
        return 1.0
    return 1 - 0.99 * 0.5 * (1 + math.cos(math.pi * (step - reset_at) / steps))


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0
