"""YAML files of configurations: the shipped presets, files of a user, and the files they extend.

values = resolve(find("tiny"))        # a nested mapping, merged over what the file extends
"""

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
_ENDINGS = {".yaml", ".yml"}


def configs_folder() -> Path:
    """Find the shipped `configs` folder: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "configs"
    if packaged.is_dir():
        return packaged
    return package.parent / "configs"


def presets() -> list[str]:
    """List the names of the shipped run configurations."""
    return sorted(p.stem for p in configs_folder().glob("*.yaml") if p.stem not in _NO_RUNS)


def find(source: str) -> Path:
    """Find the file of a preset, or at a path.

    Raises:
        UserError: There is no such file or preset.
    """
    path = expanded(source)
    if path.suffix in _ENDINGS:
        if isfile(path):
            return path
        raise UserError(
            f"expected a YAML file at {source}, found none; give one that exists, or a preset:"
            f" {listed(presets())}"
        )
    preset = configs_folder() / f"{source}.yaml"
    if isfile(preset):
        return preset
    close = nearest(source, presets())
    raise UserError(
        f"unknown preset {source!r}{close}; presets: {listed(presets())}; or give a path ending in"
        " .yaml"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        UserError: The file can't be read, is not YAML, holds no mapping, or has a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(
            f"{path} can't be read: {error.strerror}; give a file that can be read"
        ) from None
    # A date such as 2024-13-45 is a ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        sentence = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {sentence}; correct it there") from None
    if isinstance(values, dict):
        return dict(values)
    found = type(values).__name__
    if values is None:
        found = "an empty file"
    raise UserError(
        f"{path} must hold a mapping of keys to values, found {found}; `extends: tiny` is the"
        " shortest one"
    )


def parse_value(text: str) -> Any:
    """Read a value as it is written in a YAML file.

    Raises:
        ValueError: The text is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def with_new_keys(
    values: Mapping[str, Any], *, section: str = "", warn: bool = True
) -> dict[str, Any]:
    """Rename keys in an old spelling to the new one, with a warning that names it.

    Args:
        values: Whole configuration as nested mappings, or one section of it.
        section: Name of the section that `values` is; empty for a whole configuration.
        warn: True to warn for each old key.

    Raises:
        UserError: A key is there in both spellings.
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
            if new in renamed:
                raise UserError(
                    f"the key {section}.{new} is given twice, found {section}.{old}, its old name, "
                    "too; leave that out"
                )
            renamed[new] = renamed.pop(old)
            if warn:
                text = (
                    f"the key {section}.{old} is now called {section}.{new};"
                    " the next version will refuse the old name"
                )
                warnings.warn(text, FutureWarning, stacklevel=2)
    return renamed


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` on top of `base`, mapping by mapping.

    The norm of a clip policy goes with it: another policy does not keep `clip.max_norm`.
    """
    merged = dict(base)
    if over.get("policy") not in (None, base.get("policy")):
        merged.pop("max_norm", None)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def resolve(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge the values of a file over those of the file that it extends.

    Args:
        path: YAML file.
        seen: Files that extend it, directly or through others, outermost first.

    Raises:
        UserError: A file is not valid, is not there, or extends itself.
    """
    path = path.resolve()
    if path in seen:
        chain = " → ".join(str(one) for one in seen)
        raise UserError(f"{path} extends itself through {chain}; remove one `extends`")
    values = with_new_keys(read_yaml(path))
    base = values.pop("extends", None)
    if base is None:
        return {"name": path.stem, **values}
    parent = path.parent / str(base)  # a path is relative to the file
    if parent.suffix not in _ENDINGS or not parent.is_file():
        parent = find(str(base))
    return merge(resolve(parent, (*seen, path)), {"name": path.stem, **values})


def nest(path: list[str], value: Any) -> dict[str, Any]:
    """Put `value` under nested keys, the outermost first."""
    for key in reversed(path):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence."""
    return ", ".join(names)


class _StrictLoader(yaml.SafeLoader):
    """Safe loader of YAML that refuses repeated keys and endless values; 3e-4 is a number."""

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
                None, None, f"the key {twice!r} is there twice", node.start_mark
            )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _check_finite(node: yaml.Node, above: list[int], seen: set[int]) -> None:
    """Refuse a value that holds itself, as an alias inside its own anchor does.

    Args:
        node: Node that is checked with all below it.
        above: Identities of the nodes around it.
        seen: Identities of the nodes that are checked already, which are skipped.
    """
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "a value holds itself", node.start_mark)
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    below = node.value
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    for part in below:
        _check_finite(part, [*above, id(node)], seen)


_StrictLoader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
