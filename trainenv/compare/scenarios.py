"""Scenarios: the runs that every method trains, each a pure function of its name and a seed."""

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
from trainenv.models.spec import USUAL_RATE
from trainenv.types import UserError

Group = Literal["calm", "stressed"]
GROUPS: tuple[Group, ...] = get_args(Group)
Kind = Literal["", "calm", "short-warmup", "mis-set", "faults"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run to train, healthy or faulty.

    Attributes:
        name: Name of the scenario and of its folder.
        group: `calm` if nothing is wrong, else `stressed`.
        fault: Fault in a word or two; empty for a calm scenario. Results are given for each fault.
        kind: Source of the gain that is there: `calm` if the settings are tuned, `short-warmup`,
            `mis-set` if another setting is wrong, `faults` if something goes wrong on the way.
            Empty to leave it open. Results are given for each kind.
        size: Configuration of model, batches and budget, on top of the preset `tiny`.
        corpus: Configuration of the text, see `CorpusConfig`.
        lr_factor: Learning rate over the suitable one, 0.192 ÷ width; 1 if `size` or `overrides`
            state a learning rate.
        stressors: Configuration of the planted faults, see `StressorConfig`.
        overrides: All other configuration, nested as in a run's YAML file.

    Raises:
        UserError: The name cannot name a folder, group or kind is unknown, a calm scenario has a
            fault or a stressed one has none, or the configuration is wrong.
    """

    name: str
    group: Group
    fault: str = ""
    kind: Kind = ""
    size: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    lr_factor: float = 1.0
    stressors: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.÷×-]*", self.name):
            raise UserError(
                f"a scenario's name must be letters, digits, '-', '_' and '.', found "
                f"{self.name!r}; choose one that can name a folder"
            )
        if self.group not in GROUPS:
            raise UserError(
                f"scenario {self.name}: group must be one of {', '.join(GROUPS)}, "
                f"found {self.group!r}"
            )
        if self.kind not in KINDS:
            raise UserError(
                f"scenario {self.name}: kind must be one of {', '.join(KINDS[1:])}, or left out, "
                f"found {self.kind!r}"
            )
        if self.group == "calm" and self.fault:
            raise UserError(
                f"scenario {self.name}: expected no fault in a calm scenario, found {self.fault!r}"
            )
        if self.group == "stressed" and not self.fault:
            raise UserError(
                f"scenario {self.name}: expected a fault, in a word or two, in a stressed "
                f"scenario, found {self.fault!r}"
            )
        for name in ("size", "corpus", "stressors", "overrides"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise UserError(
                    f"scenario {self.name}: {name} must be a mapping of keys to values, "
                    f"found {value!r}"
                )
        number = isinstance(self.lr_factor, int | float) and not isinstance(self.lr_factor, bool)
        if not (number and 0 < self.lr_factor < math.inf):
            raise UserError(
                f"scenario {self.name}: lr_factor must be a number above 0, "
                f"found {self.lr_factor!r}; 1 suits"
            )
        _ = self._config  # so that a mistake is found before anything is trained

    def config(self, seed: int) -> RunConfig:
        """Return the configuration of run number `seed`; it is the same for every method.

        So all methods see the same initial weights, data and faults.
        """
        # Below 2³¹, as every library accepts it.
        derived = xxhash.xxh3_64_intdigest(f"{self.name}/{seed}".encode()) >> 33
        return self._config.model_copy(update={"seed": derived})

    @cached_property
    def _config(self) -> RunConfig:
        here = {"name": self.name, "corpus": dict(self.corpus), "stressors": dict(self.stressors)}
        values = merge(merge(self.size, self.overrides), here)
        try:
            config = RunConfig.load("tiny", values)
            if "lr" in values.get("optimizer", {}):
                if self.lr_factor != 1:
                    raise UserError(
                        f"expected lr_factor or optimizer.lr, found both, {self.lr_factor:g} and "
                        f"{config.optimizer.lr:g}; leave one out"
                    )
                return config
            return RunConfig.load(
                config, {"optimizer.lr": USUAL_RATE / config.model.width * self.lr_factor}
            )
        except UserError as error:
            raise UserError(f"scenario {self.name}: {str(error).removeprefix('tiny: ')}") from None

    @cached_property
    def seconds(self) -> float:
        """Expected seconds that one core takes to train it.

        Each step takes 2.6 ms + 1.7 ms a layer + 22 ms a GFLOP, as measured for widths 32 to 64
        with checkpoints every 25 steps.
        """
        model = self._config.model
        corpus = self._config.corpus
        vocabulary = 256 if corpus.tokenizer == "bytes" else corpus.vocab_size
        parameters = vocabulary * model.width + 12 * model.layers * model.width**2
        gigaflops = 6e-9 * parameters * self._config.batch_size * model.context
        return self._config.steps * (0.0026 + 0.0017 * model.layers + 0.022 * gigaflops)

    @property
    def measured_on(self) -> Literal["test", "validation"]:
        """Part of the corpus that its final losses are of: the test part if it has test sequences.

        Methods look at the validation part while they train, so a final loss of it flatters them.
        """
        if self._config.validation.test_sequences:
            return "test"
        return "validation"

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)
