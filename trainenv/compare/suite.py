"""A suite: which trunks, which methods, how many seeds; from a YAML file.

seeds: 3
methods: [nothing, zclip, pbt, branching]
hindsight: [static-0.1, static-0.3, static-3]   # the best of these, and of the static ones above,
is the reference of regret
overrides: {validation: {sequences: 32}}        # of every trunk
sizes: {small: {model: {width: 32, layers: 1}, steps: 700}}
corpora: {bytes: {name: stdlib}}
trunks:
calm: {group: calm, size: small, corpus: bytes}
too-high: {group: stressed, fault: LR × 10, size: small, corpus: bytes, lr_factor: 10}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os.path import isfile
from pathlib import Path
from typing import Any

from trainenv.compare.trunks import Trunk
from trainenv.config.presets import configs_folder, merge, read_yaml
from trainenv.config.schema import with_whole_paths
from trainenv.tools.paths import expanded
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

_KEYS = ("seeds", "methods", "hindsight", "overrides", "sizes", "corpora", "trunks")
_NAMED = {"size": "sizes", "corpus": "corpora"}  # fields of a trunk that name an entry of the suite


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is compared.

    Attributes:
        name: of it.
        trunks: different names.
        methods: names of them, in the order of the tables.
        hindsight: names of methods that are no competitors: what a static setting would have come
            to, known afterwards.
        seeds: runs a trunk, from 0 on.

    Raises:
        UserError: nothing to compare, or the same twice.
    """

    name: str
    trunks: tuple[Trunk, ...]
    methods: tuple[str, ...]
    hindsight: tuple[str, ...] = ()
    seeds: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, int) or self.seeds < 1:
            raise UserError(
                f"{self.name}: seeds must be a whole number, at least 1, found {self.seeds!r}"
            )
        for what, names in {
            "trunks": [t.name for t in self.trunks],
            "methods": [*self.methods, *self.hindsight],
        }.items():
            if not names:
                raise UserError(
                    f"{self.name}: a comparison needs {what}, found none; name at least one"
                )
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(
                    f"{self.name}: {what} must differ, found {twice!r} twice; leave one out"
                )

    @property
    def played(self) -> tuple[str, ...]:
        """Every method that is to be played."""
        return (*self.methods, *self.hindsight)

    def select(
        self,
        *,
        methods: Sequence[str] | None = None,
        trunks: Sequence[str] | None = None,
        seeds: int | None = None,
    ) -> Suite:
        """A part of it, or other methods and seeds than it names; None leaves it as it is.

        Raises:
            UserError: no such trunk.
        """
        chosen = self.trunks
        if trunks is not None:
            known = {trunk.name: trunk for trunk in self.trunks}
            check_known("trunk", trunks, known)
            chosen = tuple(known[name] for name in trunks)
        wanted = self.methods if methods is None else tuple(methods)
        hindsight = tuple(name for name in self.hindsight if name not in wanted)
        return replace(
            self,
            trunks=chosen,
            methods=wanted,
            hindsight=hindsight,
            seeds=self.seeds if seeds is None else seeds,
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "name": self.name,
            "seeds": self.seeds,
            "methods": list(self.methods),
            "hindsight": list(self.hindsight),
            "trunks": [trunk.to_json() for trunk in self.trunks],
        }


def suites() -> list[str]:
    """Names of those that come with the package."""
    return sorted(path.stem for path in (configs_folder() / "compare").glob("*.yaml"))


def load_suite(source: str | Path) -> Suite:
    """The suite of a name or of a YAML file.

    Raises:
        UserError: no such suite, or something in it is wrong: the nearest valid name stands in the
            sentence.
    """
    path = expanded(source)
    if path.suffix not in (".yaml", ".yml"):
        path = configs_folder() / "compare" / f"{source}.yaml"
        if str(source) not in suites():
            close = nearest(source, suites())
            raise UserError(
                f"unknown suite {str(source)!r}{close}; suites: {', '.join(suites())}; or give a path ending in .yaml"
            )
    elif not isfile(path):
        raise UserError(
            f"expected a YAML file at {path}, found none; give one that exists, or a suite: {', '.join(suites())}"
        )
    return suite_of(read_yaml(path), path.stem)


def suite_of(values: Mapping[str, Any], name: str) -> Suite:
    """The suite that the mapping in a YAML file describes.

    Raises:
        UserError: something in it is wrong.
    """
    check_known("key", values, _KEYS, name)
    parts = {
        key: _mapping(values.get(key) or {}, f"{name}: {key}")
        for key in ("overrides", "sizes", "corpora", "trunks")
    }
    lists = {
        key: _names(values.get(key) or (), f"{name}: {key}") for key in ("methods", "hindsight")
    }
    trunks = tuple(
        _trunk(key, _mapping(trunk, f"{name}: trunks.{key}"), parts)
        for key, trunk in parts["trunks"].items()
    )
    return Suite(name=name, trunks=trunks, seeds=values.get("seeds", 5), **lists)


def check_known(what: str, names: Iterable[str], valid: Iterable[str], where: str = "") -> None:
    """Refuse names that are none of the valid ones.

    Raises:
        UserError: names the nearest valid one.
    """
    known = list(valid)
    for name in names:
        if name not in known:
            start = f"{where}: " if where else ""
            raise UserError(
                f"{start}unknown {what} {name!r}{nearest(name, known)}; valid: {', '.join(known)}"
            )


def _trunk(name: str, values: Mapping[str, Any], suite: Mapping[str, Mapping[str, Any]]) -> Trunk:
    check_known(
        "key",
        values,
        [field.name for field in fields(Trunk) if field.name != "name"],
        f"trunk {name}",
    )
    given = dict(values)
    if "group" not in given:
        raise UserError(f"trunk {name}: group is missing; say calm or stressed")
    for key, among in _NAMED.items():
        if key not in given:
            raise UserError(
                f"trunk {name}: {key} is missing; name one of {among}: {', '.join(suite[among])}"
            )
        check_known(key, [str(given[key])], suite[among], f"trunk {name}")
        given[key] = suite[among][given[key]]
    given["overrides"] = merge(
        suite["overrides"], _mapping(given.get("overrides") or {}, f"trunk {name}: overrides")
    )
    if isinstance(given["corpus"], Mapping):  # else the trunk says what is wrong
        given["corpus"] = with_whole_paths(given["corpus"])
    return Trunk(name=str(name), **given)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping of keys to values, found {value!r}")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{where} must be a list of names, found {value!r}")
    return tuple(str(name) for name in value)
