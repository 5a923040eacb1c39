"""Groups of runs to learn from: one configuration, trained under several paths of the rate.

Every run of a group has the same initial weights, batches and faults; only its learning rate
differs. The properties of a group (size, text, rate, warm-up, schedule, faults, …) are drawn
independently, so each can be left out for a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.dataset.trunks import STRESSORS, Size

SIZES = (
    Size(width=16, layers=1, heads=2, context=32),
    Size(width=16, layers=2, heads=2, context=32, batch_size=4),
    Size(width=32, layers=1, heads=2, context=32, batch_size=4),
    Size(width=32, layers=1, heads=2, context=32),
    Size(width=32, layers=1, heads=2, context=32),
    Size(width=32, layers=2, heads=2, context=32, batch_size=4),
    Size(width=48, layers=1, heads=3, context=32, batch_size=4),
    Size(width=32, layers=1, heads=2, context=64, batch_size=4),
)
"""Shapes of the runs; one that occurs twice is twice as frequent."""
LONG_SIZES = (
    *SIZES,
    Size(width=64, layers=1, heads=2, context=32, batch_size=4),
    Size(width=64, layers=2, heads=2, context=32, batch_size=4),
)
"""Shapes of the long runs."""
TEXTS = ("bytes", "bytes", "subwords", "subwords", "topics")
STEPS = (200, 1000)  # least and greatest budget, drawn log-uniformly
LONG_STEPS = (1000, 6000)
"""Least and greatest budget of long runs."""
RATES = (0.08, 12.0)  # least and greatest learning rate over the suitable one, likewise
JUDGED = {"topics": 5_120}
"""Validation tokens that the final loss is measured on, by text, if not 16 384."""

_FAULTY = 0.4  # share of the groups with faults
_STRESSED = 0.25  # share of the groups with a stressor
_WARMUPS = (0.0125, 0.025, 0.05, 0.05, 0.1, 0.2, 0.4, 0.6)
_SCHEDULES = (
    ("cosine", 0.1),
    ("cosine", 0.1),
    ("cosine", 0.0),
    ("cosine", 0.3),
    ("wsd", 0.0),
    ("constant", 1.0),
)
_BETA2 = (0.95, 0.95, 0.99, 0.999)
_WEIGHT_DECAYS = (0.1, 0.1, 0.03, 0.3)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Configuration that several runs share, as a pure value.

    Attributes:
        index: Place in the sample; it names the file.
        seed: Random seed of weights, data and paths.
        text: Name of the text and its tokenizer, one of `TEXTS`.
        size: Shape of the model and its batches.
        steps: Budget, in optimizer steps.
        lr_factor: Learning rate over `size.lr`.
        warmup: Steps of the warm-up.
        schedule: Kind of learning-rate schedule.
        final: Learning rate at the end over that at the peak.
        beta2: Second-moment decay of AdamW.
        weight_decay: Weight decay of AdamW.
        stressors: Section `stressors` of the configuration.
    """

    index: int
    seed: int
    text: str
    size: Size
    steps: int
    lr_factor: float
    warmup: int
    schedule: str
    final: float
    beta2: float
    weight_decay: float
    stressors: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the group and of its file."""
        return f"g{self.index:05d}"

    def overrides(self, texts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the configuration of the runs, on top of the preset `tiny`.

        Args:
            texts: Configuration of each text, as `write_texts` returns it.
        """
        corpus = dict(texts.get(self.text, texts["stdlib"]))
        if self.text == "subwords":
            corpus |= {"tokenizer": "bpe", "vocab_size": 512}
        shape = {name: getattr(self.size, name) for name in ("width", "layers", "heads", "context")}
        return {
            "name": self.name,
            "seed": self.seed,
            "steps": self.steps,
            "threads": 1,
            "batch_size": self.size.batch_size,
            "model": shape,
            "corpus": corpus,
            "optimizer": {
                "lr": self.size.lr * self.lr_factor,
                "betas": (0.9, self.beta2),
                "weight_decay": self.weight_decay,
            },
            "schedule": {"kind": self.schedule, "warmup": self.warmup, "final": self.final},
            "clip": {"policy": "zclip"},
            "validation": {
                "every": 0,
                "sequences": JUDGED.get(self.text, 16_384) // self.size.context,
            },
            "stressors": dict(self.stressors),
        }

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Group:
        """Return the group from what `to_json` returned."""
        return cls(**{**values, "size": Size(**values["size"])})


def sample_groups(
    count: int, *, seed: int, first: int = 0, long: bool = False
) -> tuple[Group, ...]:
    """Sample the groups `first` to `first + count − 1` of a seed.

    Args:
        count: Number of groups.
        seed: Random seed.
        first: Place of the first group in the sample.
        long: Flag: runs of `LONG_STEPS` and `LONG_SIZES` instead of `STEPS` and `SIZES`.

    Raises:
        UserError: The count is below 1.
    """
    if count < 1:
        raise UserError(f"the number of groups must be at least 1, found {count}")
    return tuple(_group(index, seed, long) for index in range(first, first + count))


def _group(index: int, seed: int, long: bool) -> Group:
    rng = stream(seed, "paths", index)
    sizes = LONG_SIZES if long else SIZES
    size = sizes[rng.integers(len(sizes))]
    steps = round(_log_uniform(rng, LONG_STEPS if long else STEPS))
    schedule, final = _SCHEDULES[rng.integers(len(_SCHEDULES))]
    stressors: dict[str, Any] = {}
    if rng.random() < _STRESSED:
        name = list(STRESSORS)[rng.integers(len(STRESSORS))]
        rate = STRESSORS[name] * float(4 ** rng.random())
        if name == "harsh_warmup":
            stressors["harsh_warmup_steps"] = max(1, round(rate * steps))
        else:
            stressors[name] = rate
    if rng.random() < _FAULTY:
        stressors["planted"] = [_fault(rng, steps) for _ in range(rng.integers(1, 3))]
    return Group(
        index=index,
        seed=int(rng.integers(2**31)),
        text=TEXTS[rng.integers(len(TEXTS))],
        size=size,
        steps=steps,
        lr_factor=_log_uniform(rng, RATES),
        warmup=max(4, round(_WARMUPS[rng.integers(len(_WARMUPS))] * steps)),
        schedule=schedule,
        final=final,
        beta2=_BETA2[rng.integers(len(_BETA2))],
        weight_decay=_WEIGHT_DECAYS[rng.integers(len(_WEIGHT_DECAYS))],
        stressors=stressors,
    )


def _fault(rng: np.random.Generator, steps: int) -> dict[str, Any]:
    """Return a fault between 10 and 95 % of the budget."""
    kind = ("lr_spike", "lr_spike", "random_tokens", "lost_moments")[rng.integers(4)]
    fault: dict[str, Any] = {"kind": kind, "at": int(rng.uniform(0.1, 0.95) * steps)}
    if kind == "lr_spike":
        fault |= {"steps": int(rng.integers(3, 10)), "size": _log_uniform(rng, (4, 30))}
    elif kind == "random_tokens":
        fault |= {"steps": int(rng.integers(4, 14)), "size": float(rng.uniform(0.5, 1))}
    else:
        fault |= {"steps": int(rng.integers(1, 20))}
    return fault


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    low, high = map(math.log, bounds)
    return float(math.exp(rng.uniform(low, high)))
