"""Settings of a comparison of weightings, read from a YAML file.

seeds: 3
methods: [uniform, critic, rho1, random, shuffled]
run: {steps: 300, tasks: {scale: 0.02}}            # changes to the preset `mtp`
reference: {steps: 300}                            # changes to `tiny`, for the reference of rho1
evaluation: {samples: 10, ks: [1, 10]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from os.path import isfile
from pathlib import Path
from typing import Any

from trainenv.compare.suite import check_known
from trainenv.compare.wmtp.methods import METHODS
from trainenv.config.presets import configs_folder, read_yaml
from trainenv.tools.checks import count, number
from trainenv.tools.paths import expanded
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

_KEYS = ("seeds", "methods", "run", "reference", "evaluation")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of the evaluation of a finished run.

    Attributes:
        samples: Number of samples of each task.
        ks: Numbers k of pass@k, each at most `samples`.
        max_tokens: Most tokens of a sample.
        temperature: Temperature of sampling.
        top_p: Probability mass that is sampled from.
        tasks: Most tasks of the test part.
        drafts: Number of tasks on which drafting by the heads is measured; 0 leaves it out.
        seed: Random seed.

    Raises:
        UserError: A number is out of range.
    """

    samples: int = 10
    ks: tuple[int, ...] = (1, 10)
    max_tokens: int = 24
    temperature: float = 0.8
    top_p: float = 0.95
    tasks: int = 64
    drafts: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", tuple(self.ks))
        for name in ("samples", "max_tokens", "tasks"):
            count(name, getattr(self, name), least=1)
        for name in ("drafts", "seed"):
            count(name, getattr(self, name), least=0)
        number("temperature", self.temperature, least=0)
        number("top_p", self.top_p, above=0, most=1)
        if not self.ks or min(self.ks) < 1 or max(self.ks) > self.samples:
            raise UserError(
                f"every k of pass@k must be from 1 to the number of samples, {self.samples}, found "
                f"{', '.join(map(str, self.ks)) or 'none'}; give more samples or smaller k"
            )


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a comparison.

    Attributes:
        name: Name of the comparison.
        seeds: Number of runs of each method, numbered from 0 on.
        methods: Names of the methods, see `METHODS`.
        run: Changes to the preset `mtp` for each run.
        reference: Further changes for the reference, which is trained on the next token.
        evaluation: Settings of the evaluation.

    Raises:
        UserError: A method is unknown or comes twice, or a number is out of range.
    """

    name: str
    seeds: int = 3
    methods: tuple[str, ...] = tuple(METHODS)
    run: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        count("seeds", self.seeds, least=1)
        check_known("method", self.methods, METHODS)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError(
                f"{self.name}: methods must be given, each once, found "
                f"{', '.join(self.methods) or 'none'}"
            )

    def select(self, *, methods: Sequence[str] | None, seeds: int | None) -> Preset:
        """Return a preset with other methods, or another number of seeds; None keeps them."""
        return replace(
            self,
            methods=self.methods if methods is None else tuple(methods),
            seeds=self.seeds if seeds is None else seeds,
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


def load_preset(source: str | Path) -> Preset:
    """Load a preset by its name (`quick`, `learned`, `full`) or the path of a YAML file.

    Raises:
        UserError: There is no such file, or a key or a value is wrong.
    """
    path = _find(str(source))
    values = read_yaml(path)
    _check_keys(path, values, _KEYS)
    given = values.get("evaluation") or {}
    names = tuple(f.name for f in fields(EvaluationSettings))
    _check_keys(path, given, names)
    found: dict[str, Any] = {key: values[key] for key in ("run", "reference") if values.get(key)}
    if "seeds" in values:
        found["seeds"] = values["seeds"]
    if "methods" in values:
        found["methods"] = tuple(values["methods"])
    return Preset(name=path.stem, evaluation=EvaluationSettings(**given), **found)


def _find(source: str) -> Path:
    path = expanded(source)
    shipped = configs_folder() / "wmtp" / f"{source}.yaml"
    if path.suffix in (".yaml", ".yml") and isfile(path):
        return path
    if isfile(shipped):
        return shipped
    known = sorted(p.stem for p in shipped.parent.glob("*.yaml"))
    raise UserError(
        f"expected a preset of weightings, {' or '.join(known)}, or the path of a YAML file, found "
        f"{source!r}{nearest(source, known)}"
    )


def _check_keys(path: Path, values: Any, known: Sequence[str]) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: expected a mapping with {', '.join(known)}, found {values!r:.60}")
    for key in values:
        if key not in known:
            raise UserError(
                f"{path}: unknown key {key!r}{nearest(str(key), known)}; expected "
                f"{', '.join(known)}"
            )
