"""YAML files: the shipped presets, a user's own, what they extend, and the one they mean when they misspell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import yaml

from trainenv.tools.paths import expanded
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

RENAMED_KEYS: Mapping[str, Mapping[str, str]] = {
    "branching": {
        "insure": "default_clip",
        "worth": "min_gain",
        "reach": "max_lr_factor",
        "share": "max_waste",
        "quiet": "refractory_steps",
        "keep": "rewind_points",
    },
}
"""Section → old spelling → new spelling of its keys. The old one is read for one version."""
_NO_RUNS = ("uncertainty", "state_schema_v1")  # shipped files that configure no run


def configs_folder() -> Path:
    """The shipped `configs` folder: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def presets() -> list[str]:
    """Names of the shipped run configurations."""
    return sorted(p.stem for p in configs_folder().glob("*.yaml") if p.stem not in _NO_RUNS)


def find(source: str) -> Path:
    """The file of a preset's name, or of a path."""
    path = expanded(source)
    if path.suffix in {".yaml", ".yml"}:
        if isfile(path):
            return path
        raise UserError(
            f"expected a YAML file at {source}, found none; give one that exists, or a preset: {listed(presets())}"
        )
    preset = configs_folder() / f"{source}.yaml"
    if isfile(preset):
        return preset
    close = nearest(source, presets())
    raise UserError(
        f"unknown preset {source!r}{close}; presets: {listed(presets())}; or give a path ending in .yaml"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: not YAML, not a mapping, or a key that stands twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(
            f"{path} can't be read: {error.strerror}; give a file that may be read"
        ) from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a date like 2024-13-45 is a ValueError
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        found = "an empty file" if values is None else type(values).__name__
        raise UserError(
            f"{path} must hold a mapping of keys to values, found {found}; `extends: tiny` is the shortest one"
        )
    return dict(values)


def parse_value(text: str) -> Any:
    """A value as it would stand in a YAML file.

    Raises:
        ValueError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def with_new_keys(
    values: Mapping[str, Any], *, section: str = "", warn: bool = True
) -> dict[str, Any]:
    """Give keys in their old spelling their new one, with a warning that names it.

    An old key next to its new one wins.

    Args:
        values: Configuration as nested mappings, or one section of it.
        section: Name of the section that `values` is; empty for a whole configuration.
        warn: True to warn for each old key.
    """
    if not section:
        sections = {
            name: with_new_keys(values[name], section=name, warn=warn)
            for name in RENAMED_KEYS
            if isinstance(values.get(name), Mapping)
        }
        return {**values, **sections}
    renamed = dict(values)
    for old, new in RENAMED_KEYS.get(section, {}).items():
        if old in renamed:
            renamed[new] = renamed.pop(old)
            if warn:
                text = f"the key {section}.{old} is now called {section}.{new}; the old name will go in the next version"
                warnings.warn(text, FutureWarning, stacklevel=2)
    return renamed


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value)
            if isinstance(below, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged


def resolve(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of the file that it extends."""
    path = path.resolve()
    if path in seen:
        raise UserError(
            f"{path} extends itself through {' → '.join(str(p) for p in seen)}; remove one `extends`"
        )
    values = with_new_keys(read_yaml(path))
    base = values.pop("extends", None)
    if base is None:
        return {"name": path.stem, **values}
    beside = path.parent / str(base)
    parent = beside if beside.suffix in {".yaml", ".yml"} and beside.is_file() else find(str(base))
    return merge(resolve(parent, (*seen, path)), {"name": path.stem, **values})


def nest(path: list[str], value: Any) -> dict[str, Any]:
    """`value` under nested keys."""
    first, *rest = path
    return {first: nest(rest, value) if rest else value}


def listed(names: Sequence[str]) -> str:
    """Names as they stand in a sentence."""
    return ", ".join(names)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, refusing keys that stand twice, values that hold themselves, and reading 3e-4 as the number it is."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _check_finite(node, [], set())
        return self.construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice", node.start_mark
            )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _check_finite(node: yaml.Node, above: list[int], seen: set[int]) -> None:
    """Refuse a value that holds itself, as an alias inside of its own anchor makes it.

    Each node is looked at once.
    """
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "a value holds itself", node.start_mark)
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    for part in node.value:
        for below in part if isinstance(part, tuple) else (part,):
            _check_finite(below, [*above, id(node)], seen)


_StrictLoader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
