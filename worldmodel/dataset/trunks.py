"""Trunks: the runs that are branched, sampled so that every property is balanced.

Every property (size, corpus, stressor, fault, …) has a list of levels. In each block of as many
trunks as there are levels, each level comes once, in random order. So `sample(100)` starts with
`sample(10)`, both are balanced, and each level can be left out for a test. A quarter of the trunks
is clean and well set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from trainenv.models.spec import USUAL_RATE
from trainenv.types import CLIP_NAMES, ClipName, UserError
from trainenv.worldmodel.dataset.faults import FAULT_KINDS, PLANTED, Fault, FaultKind
from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.dataset.texts import CORPORA, Texts

Setting = Literal["clean", "misset", "faulty", "stressed", "mixed"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)
STRESSORS = {
    "rare_tokens": 0.02,
    "long_sequence": 0.01,
    "artefacts": 0.01,
    "block_shuffle": 0.05,
    "harsh_warmup": 0.1,
}
"""Least rate of each stressor; rates are drawn up to 4 times as high.

The rate of `harsh_warmup` is a share of the budget.
"""
VALIDATION_TOKENS = 1024
SHORTEST = 40  # steps of the shortest trunk: about eight evaluation points fit into an eighth of it

_SETTING_LEVELS: tuple[Setting, ...] = (
    "clean",
    "clean",
    "misset",
    "misset",
    "faulty",
    "faulty",
    "stressed",
    "mixed",
)
_LR_FACTORS = (0.25, 0.5, 2.0, 4.0, 8.0, 16.0, 32.0)
_BETA2 = (0.9, 0.95, 0.99, 0.999)
_SCHEDULES = (("cosine", 0.1), ("cosine", 0.0), ("wsd", 0.0))
_WEIGHT_DECAYS = (0.03, 0.1, 0.3, 1.0)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of a model and of its batches.

    Attributes:
        width: Width of the model.
        layers: Number of layers.
        heads: Number of attention heads.
        context: Tokens of a sequence.
        batch_size: Sequences of a batch.
        most_steps: Greatest budget, in optimizer steps, which keeps large trunks affordable.
    """

    width: int
    layers: int
    heads: int
    context: int = 64
    batch_size: int = 8
    most_steps: int = 800

    @property
    def parameters(self) -> int:
        """The approximate number of parameters of a byte-level GPT-2."""
        return (
            (257 + self.context) * self.width
            + self.layers * (12 * self.width**2 + 13 * self.width)
            + 2 * self.width
        )

    @property
    def lr(self) -> float:
        """The suitable learning rate.

        The best of 1.5e-3 … 2.4e-2 after 200–250 steps halves as the width doubles (16–128).
        """
        return USUAL_RATE / self.width


# Few tokens a step: a model learns more from many trunks than from long ones.
_SHORT = {"context": 32, "batch_size": 4}
_W16 = Size(width=16, layers=2, heads=2, **_SHORT)
_W32 = Size(width=32, layers=1, heads=2, **_SHORT)
_W32_DEEP = Size(width=32, layers=2, heads=2, context=32)
_W48 = Size(width=48, layers=2, heads=3, **_SHORT)
_W64 = Size(width=64, layers=2, heads=2, most_steps=400, **_SHORT)
_TINY = Size(width=64, layers=2, heads=2, most_steps=400)
_W96 = Size(width=96, layers=3, heads=3, batch_size=4, context=32, most_steps=300)
_W128 = Size(width=128, layers=4, heads=4, batch_size=4, context=32, most_steps=200)
SIZES = (*[_W16] * 6, *[_W32] * 7, *[_W32_DEEP] * 3, *[_W48] * 5, *[_W64] * 2, _TINY, _W96, _W128)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A run to be branched, as a pure value: the same trunk is the same run on every machine.

    Attributes:
        index: Place in the sample; it names the shard.
        seed: Random seed of weights, data and branches.
        setting: Kind of trunk: clean, with wrong settings, faulty, stressed, or mixed.
        size: Shape of the model and its batches.
        corpus: Name of the corpus.
        steps: Budget, in optimizer steps.
        lr_factor: Learning rate over `size.lr`.
        beta2: Second-moment decay of AdamW.
        weight_decay: Weight decay of AdamW.
        clip: Clip policy.
        schedule: Kind of learning-rate schedule.
        final: Learning rate at the end over that at the peak.
        stressor: Name in `STRESSORS`; empty for none.
        stressor_rate: Rate of the stressor.
        faults: Faults, in the order of their steps.
    """

    index: int
    seed: int
    setting: Setting
    size: Size
    corpus: str
    steps: int
    lr_factor: float
    beta2: float
    weight_decay: float
    clip: ClipName
    schedule: str
    final: float
    stressor: str = ""
    stressor_rate: float = 0.0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < SHORTEST:
            raise UserError(
                f"a trunk needs at least {SHORTEST} steps, found {self.steps}; its branches would "
                "be too short, so give it more"
            )

    @property
    def name(self) -> str:
        """The name of the trunk and of its shard."""
        return f"t{self.index:05d}"

    @property
    def warmup(self) -> int:
        """The steps of the learning rate's warm-up."""
        return max(5, self.steps // 20)

    @property
    def reset_warmup(self) -> int:
        """The steps of the warm-up after a momentum reset."""
        return max(5, self.steps // 60)

    def overrides(self, texts: Texts) -> dict[str, Any]:
        """Return the configuration of the run, on top of the preset `tiny`.

        Args:
            texts: Configuration of each corpus, as `write_texts` returns it.
        """
        stress: dict[str, Any] = {
            "planted": [asdict(fault) for fault in self.faults if fault.kind in PLANTED],
        }
        if self.stressor == "harsh_warmup":
            stress["harsh_warmup_steps"] = max(1, round(self.stressor_rate * self.steps))
        elif self.stressor:
            stress[self.stressor] = self.stressor_rate
        shape = {name: getattr(self.size, name) for name in ("width", "layers", "heads", "context")}
        return {
            "name": self.name,
            "seed": self.seed,
            "steps": self.steps,
            "threads": 1,
            "batch_size": self.size.batch_size,
            "block_steps": 4,  # so that a reorder changes the next steps of a short branch
            "reset_warmup": self.reset_warmup,
            "model": shape,
            "corpus": dict(texts[self.corpus]),
            "optimizer": {
                "lr": self.size.lr * self.lr_factor,
                "betas": (0.9, self.beta2),
                "weight_decay": self.weight_decay,
            },
            "schedule": {"kind": self.schedule, "warmup": self.warmup, "final": self.final},
            "clip": {"policy": self.clip},
            "validation": {"every": 0, "sequences": VALIDATION_TOKENS // self.size.context},
            "interventions": {
                "allow_spam": True,
                "allow_data_reorder": True,
                "allow_skip_batch": True,
            },
            "stressors": stress,
        }

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trunk:
        """Return the trunk from what `to_json` returned."""
        parts = {
            "size": Size(**values["size"]),
            "faults": tuple(Fault(**fault) for fault in values["faults"]),
        }
        return cls(**{**values, **parts})


def sample(
    count: int,
    *,
    seed: int,
    sizes: Sequence[Size] = SIZES,
    steps: tuple[int, int] = (200, 800),
    first: int = 0,
) -> tuple[Trunk, ...]:
    """Sample the trunks `first` to `first + count − 1` of a seed.

    Args:
        count: Number of trunks.
        seed: Random seed of the sample.
        sizes: Levels of the size; one that occurs several times is more frequent.
        steps: Least and greatest budget, drawn log-uniformly; a size's `most_steps` caps it.
        first: Index of the first trunk; set it to add to an existing data set.

    Raises:
        UserError: The budget is out of range.
    """
    if not SHORTEST <= steps[0] <= steps[1]:
        raise UserError(
            f"steps must be (least, greatest), at least {SHORTEST}, found {steps}; give two "
            "numbers in this order"
        )
    return tuple(_trunk(index, seed, sizes, steps) for index in range(first, first + count))


def _trunk(index: int, seed: int, sizes: Sequence[Size], steps: tuple[int, int]) -> Trunk:
    rng = stream(seed, "trunk", index)
    setting = _level(_SETTING_LEVELS, seed, "setting", index)
    size = _level(sizes, seed, "size", index)
    most = max(steps[0], min(steps[1], size.most_steps))
    budget = round(math.exp(rng.uniform(math.log(steps[0]), math.log(most))))
    schedule, final = _level(_SCHEDULES, seed, "schedule", index)
    # Well set is a range, not a point.
    lr_factor = float(2 ** rng.uniform(-0.4, 0.4))
    weight_decay = 0.1
    if setting in ("misset", "mixed"):
        lr_factor *= _level(_LR_FACTORS, seed, "lr_factor", index)
        weight_decay = _level(_WEIGHT_DECAYS, seed, "weight_decay", index)
    # The order of these draws is that of all data sets so far.
    trunk_seed = int(rng.integers(2**62))
    stressor = ""
    stressor_rate = 0.0
    if setting in ("stressed", "mixed"):
        stressor = _level(tuple(STRESSORS), seed, "stressor", index)
        stressor_rate = STRESSORS[stressor] * float(4 ** rng.random())
    faults: tuple[Fault, ...] = ()
    if setting in ("faulty", "mixed"):
        faults = _faults(rng, budget, _order(FAULT_KINDS, seed, index))
    return Trunk(
        index=index,
        seed=trunk_seed,
        setting=setting,
        size=size,
        corpus=_level(("stdlib", *CORPORA), seed, "corpus", index),
        steps=budget,
        lr_factor=lr_factor,
        beta2=_level(_BETA2, seed, "beta2", index),
        weight_decay=weight_decay,
        clip=_level(CLIP_NAMES, seed, "clip", index),
        schedule=schedule,
        final=final,
        stressor=stressor,
        stressor_rate=stressor_rate,
        faults=faults,
    )


def _faults(rng: np.random.Generator, budget: int, kinds: Sequence[FaultKind]) -> tuple[Fault, ...]:
    """Draw one to three faults of different kinds, between 15 and 85 % of the budget.

    The interval is divided equally between the faults.
    """
    count = int(rng.integers(1, 4))
    width = 0.7 * budget / count
    faults = []
    for place, kind in enumerate(kinds[:count]):
        at = round(0.15 * budget + (place + 0.6 * rng.random()) * width)
        strong = float(np.exp(rng.uniform(np.log(4), np.log(60))))
        size = strong
        if kind not in ("lr_spike", "weight_kick"):
            size = float(rng.uniform(0.5, 1.0))
        steps = 1
        if kind in PLANTED:
            steps = max(1, min(int(rng.integers(3, 11)), round(0.3 * width)))
        faults.append(Fault(kind=kind, at=at, steps=steps, size=size))
    return tuple(faults)


def _level(levels: Sequence[T], seed: int, factor: str, index: int) -> T:
    block, place = divmod(index, len(levels))
    return levels[int(stream(seed, factor, block).permutation(len(levels))[place])]


def _order(kinds: Sequence[T], seed: int, index: int) -> list[T]:
    """Return `kinds` in random order, with the first one balanced over trunks."""
    first = _level(range(len(kinds)), seed, "fault", index)
    others = stream(seed, "faults", index).permutation(
        [place for place in range(len(kinds)) if place != first]
    )
    return [kinds[first], *(kinds[int(place)] for place in others)]
