"""Trunks: the runs that every method has to train, each a pure function of its name and a seed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import xxhash

from trainenv.config.presets import merge
from trainenv.config.schema import RunConfig
from trainenv.types import UserError

Group = Literal["calm", "stressed"]
GROUPS: tuple[Group, ...] = get_args(Group)
# the learning rate that suits, times the width: the best of 1.5e-3 … 2.4e-2 halves as the width
# doubles
SUITED = 0.192


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A run that something is wrong with, or nothing.

    Attributes:
        name: of it, and of its folder.
        group: `calm` where nothing is wrong, else `stressed`.
        fault: what is wrong, in a word or two: trunks with the same are told together. Empty for a
            calm one.
        size: the configuration of its model, its batches and its budget, on top of the preset
            `tiny`.
        corpus: `CorpusConfig` of its text.
        lr_factor: its learning rate over the one that suits its width, 0.192 ÷ width; no meaning
            where `overrides` state one.
        stressors: `StressorConfig` of what is planted.
        overrides: anything else, nested as in a run's YAML.

    Raises:
        UserError: no such group, a name that is none for a folder, or a fault where none should be,
            or the other way round.
    """

    name: str
    group: Group
    fault: str = ""
    size: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    lr_factor: float = 1.0
    stressors: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.÷×-]*", self.name):
            raise UserError(
                f"a trunk's name must be letters, digits, '-', '_' and '.', found {self.name!r}; its folder has it"
            )
        if self.group not in GROUPS:
            raise UserError(
                f"trunk {self.name}: group must be one of {', '.join(GROUPS)}, found {self.group!r}"
            )
        if (self.group == "calm") == bool(self.fault):
            expected = (
                "no fault in a calm trunk"
                if self.fault
                else "a fault, in a word or two, in a stressed trunk"
            )
            raise UserError(f"trunk {self.name}: expected {expected}, found {self.fault!r}")
        for name in ("size", "corpus", "stressors", "overrides"):
            if not isinstance(getattr(self, name), Mapping):
                raise UserError(
                    f"trunk {self.name}: {name} must be a mapping of keys to values, found {getattr(self, name)!r}"
                )
        number = isinstance(self.lr_factor, int | float) and not isinstance(self.lr_factor, bool)
        if not (number and 0 < self.lr_factor < math.inf):
            raise UserError(
                f"trunk {self.name}: lr_factor must be a number above 0, found {self.lr_factor!r}; 1 suits"
            )
        _ = self._config  # a mistake is told before anything is trained

    def config(self, seed: int) -> RunConfig:
        """Of its run number `seed`: the same for every method, so that all see the same weights at the start, data and faults."""
        # below 2³¹: what every library takes
        derived = xxhash.xxh3_64_intdigest(f"{self.name}/{seed}".encode()) >> 33
        return self._config.model_copy(update={"seed": derived})

    @cached_property
    def _config(self) -> RunConfig:
        here = {"name": self.name, "corpus": dict(self.corpus), "stressors": dict(self.stressors)}
        values = merge(merge(self.size, self.overrides), here)
        try:
            config = RunConfig.load("tiny", values)
            if "lr" in values.get("optimizer", {}):
                return config
            return RunConfig.load(
                config, {"optimizer.lr": SUITED / config.model.width * self.lr_factor}
            )
        except UserError as error:
            raise UserError(f"trunk {self.name}: {str(error).removeprefix('tiny: ')}") from None

    @cached_property
    def seconds(self) -> float:
        """About how long a core takes to train it: 2.6 ms + 1.7 ms a layer + 22 ms a GFLOP for each step, as measured
        for widths 32 to 64 with checkpoints every 25 steps.
        """
        model = self._config.model
        corpus = self._config.corpus
        vocabulary = 256 if corpus.tokenizer == "bytes" else corpus.vocab_size
        parameters = vocabulary * model.width + 12 * model.layers * model.width**2
        gigaflops = 6e-9 * parameters * self._config.batch_size * model.context
        return self._config.steps * (0.0026 + 0.0017 * model.layers + 0.022 * gigaflops)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)
