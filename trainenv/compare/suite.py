"""A suite: scenarios, methods and the number of seeds, read from a YAML file.

seeds: 3
methods: [nothing, zclip, pbt, branching]
# Regret is against the best of these and of the static methods above.
hindsight: [static-0.1, static-0.3, static-3]
# Headroom is what doing nothing and these, which never look at the run, leave to be gained.
open_loop: [static-0.1, static-0.3, static-3]
overrides: {validation: {sequences: 32}}        # for every scenario
sizes: {small: {model: {width: 32, layers: 1}, steps: 700}}
corpora: {bytes: {name: stdlib}}
scenarios:
  calm: {group: calm, size: small, corpus: bytes}
  too-high: {group: stressed, fault: LR × 10, size: small, corpus: bytes, lr_factor: 10}
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os.path import isfile
from pathlib import Path
from typing import Any

from trainenv.compare.scenarios import Scenario
from trainenv.config.presets import configs_folder, merge, read_yaml
from trainenv.config.schema import with_whole_paths
from trainenv.tools.paths import expanded
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

_LISTS = ("methods", "hindsight", "open_loop")
_KEYS = ("seeds", *_LISTS, "overrides", "sizes", "corpora", "scenarios")
_OLD_KEY = "trunks"  # name of `scenarios` in the version before
# Fields of a scenario that name an entry of the suite.
_NAMED = {"size": "sizes", "corpus": "corpora"}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Scenarios and methods to compare.

    Attributes:
        name: Name of the suite.
        scenarios: Scenarios, with different names.
        methods: Names of the methods, in the order of the tables.
        hindsight: Names of static methods that do not compete. The best of them, known only after
            the runs, is the reference of regret.
        open_loop: Names of methods that never look at the run; the references of headroom are
            chosen from them. They may be among the others. Those that are not do not compete.
        seeds: Number of runs of each scenario and method, numbered from 0 on.

    Raises:
        UserError: There is nothing to compare, or a name comes twice.
    """

    name: str
    scenarios: tuple[Scenario, ...]
    methods: tuple[str, ...]
    hindsight: tuple[str, ...] = ()
    open_loop: tuple[str, ...] = ()
    seeds: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, int) or self.seeds < 1:
            raise UserError(
                f"{self.name}: seeds must be a whole number, at least 1, found {self.seeds!r}"
            )
        for what, names in {
            "scenarios": [t.name for t in self.scenarios],
            "methods": [*self.methods, *self.hindsight],
            "open_loop": list(self.open_loop),
        }.items():
            if not names and what != "open_loop":
                raise UserError(
                    f"{self.name}: a comparison needs {what}, found none; name at least one"
                )
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(
                    f"{self.name}: {what} must differ, found {twice!r} twice; leave one out"
                )

    @property
    def played(self) -> tuple[str, ...]:
        """All methods to play."""
        return tuple(dict.fromkeys((*self.methods, *self.hindsight, *self.open_loop)))

    def select(
        self,
        *,
        methods: Sequence[str] | None = None,
        scenarios: Sequence[str] | None = None,
        seeds: int | None = None,
    ) -> Suite:
        """Return a suite with some of the scenarios, other methods or another number of seeds.

        Args:
            methods: Names of the methods; None for those of this suite.
            scenarios: Names of scenarios of this suite; None for all.
            seeds: Number of runs; None for that of this suite.

        Raises:
            UserError: The suite has no such scenario.
        """
        chosen = self.scenarios
        if scenarios is not None:
            known = {scenario.name: scenario for scenario in self.scenarios}
            check_known("scenario", scenarios, known)
            chosen = tuple(known[name] for name in scenarios)
        wanted = self.methods if methods is None else tuple(methods)
        hindsight = tuple(name for name in self.hindsight if name not in wanted)
        return replace(
            self,
            scenarios=chosen,
            methods=wanted,
            hindsight=hindsight,
            seeds=self.seeds if seeds is None else seeds,
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            "name": self.name,
            "seeds": self.seeds,
            "methods": list(self.methods),
            "hindsight": list(self.hindsight),
            "open_loop": list(self.open_loop),
            "scenarios": [scenario.to_json() for scenario in self.scenarios],
        }


def suites() -> list[str]:
    """Return the names of the suites in the package."""
    return sorted(path.stem for path in (configs_folder() / "compare").glob("*.yaml"))


def load_suite(source: str | Path) -> Suite:
    """Return the suite with a name, or in a YAML file.

    Raises:
        UserError: There is no such suite, or something in it is wrong; the sentence names the
            nearest valid name.
    """
    path = expanded(source)
    if path.suffix not in (".yaml", ".yml"):
        path = configs_folder() / "compare" / f"{source}.yaml"
        if str(source) not in suites():
            close = nearest(source, suites())
            raise UserError(
                f"unknown suite {str(source)!r}{close}; suites: {', '.join(suites())}; or give a "
                "path ending in .yaml"
            )
    elif not isfile(path):
        raise UserError(
            f"expected a YAML file at {path}, found none; give one that exists, or a suite: "
            f"{', '.join(suites())}"
        )
    return suite_of(read_yaml(path), path.stem)


def suite_of(values: Mapping[str, Any], name: str) -> Suite:
    """Return the suite that the mapping in a YAML file describes.

    Raises:
        UserError: Something in it is wrong.
    """
    values = _with_new_key(values, name)
    check_known("key", values, _KEYS, name)
    parts = {
        key: _mapping(values.get(key) or {}, f"{name}: {key}")
        for key in ("overrides", "sizes", "corpora", "scenarios")
    }
    lists = {key: _names(values.get(key) or (), f"{name}: {key}") for key in _LISTS}
    scenarios = tuple(
        _scenario(key, _mapping(scenario, f"{name}: scenarios.{key}"), parts)
        for key, scenario in parts["scenarios"].items()
    )
    return Suite(name=name, scenarios=scenarios, seeds=values.get("seeds", 5), **lists)


def noted_scenarios(noted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scenarios in what `Suite.to_json` returned, of this version or one before.

    Scenarios of earlier versions have no `kind`; they get an empty one.

    Raises:
        KeyError: It names none.
    """
    key = "scenarios"
    if _OLD_KEY in noted:
        key = _OLD_KEY
    return [{"kind": "", **scenario} for scenario in noted[key]]


def check_known(what: str, names: Iterable[str], valid: Iterable[str], where: str = "") -> None:
    """Refuse names that are not valid.

    Args:
        what: Kind of name, for the sentence.
        names: Names to check.
        valid: Valid names.
        where: Place of the names, for the sentence; empty to leave it out.

    Raises:
        UserError: A name is unknown; the sentence names the nearest valid one.
    """
    known = list(valid)
    start = ""
    if where:
        start = f"{where}: "
    for name in names:
        if name not in known:
            raise UserError(
                f"{start}unknown {what} {name!r}{nearest(name, known)}; valid: {', '.join(known)}"
            )


def _scenario(
    name: str, values: Mapping[str, Any], suite: Mapping[str, Mapping[str, Any]]
) -> Scenario:
    check_known(
        "key",
        values,
        [field.name for field in fields(Scenario) if field.name != "name"],
        f"scenario {name}",
    )
    given = dict(values)
    if "group" not in given:
        raise UserError(f"scenario {name}: group is missing; say calm or stressed")
    for key, among in _NAMED.items():
        if key not in given:
            raise UserError(
                f"scenario {name}: {key} is missing; name one of {among}: {', '.join(suite[among])}"
            )
        check_known(key, [str(given[key])], suite[among], f"scenario {name}")
        given[key] = suite[among][given[key]]
    given["overrides"] = merge(
        suite["overrides"], _mapping(given.get("overrides") or {}, f"scenario {name}: overrides")
    )
    if isinstance(given["corpus"], Mapping):  # else `Scenario` reports the mistake
        given["corpus"] = with_whole_paths(given["corpus"])
    return Scenario(name=str(name), **given)


def _with_new_key(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the values with `scenarios` in place of its old name; warn if that was used."""
    if _OLD_KEY not in values:
        return values
    if "scenarios" in values:
        raise UserError(
            f"{name}: expected scenarios alone, found {_OLD_KEY} too, its old name; move all "
            "entries to scenarios"
        )
    text = (
        f"{name}: the key {_OLD_KEY} is now called scenarios; the old name will go in the next "
        "version"
    )
    warnings.warn(text, FutureWarning, stacklevel=3)
    renamed = dict(values)
    renamed["scenarios"] = renamed.pop(_OLD_KEY)
    return renamed


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping of keys to values, found {value!r}")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{where} must be a list of names, found {value!r}")
    return tuple(str(name) for name in value)
