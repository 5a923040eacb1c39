"""Descriptions of all configuration keys: as rows, as Markdown, and as a JSON schema for editors.

    for key in keys(RunConfig.load("tiny")):
        print(key.name, key.text, key.description)

Everything here is read off the classes of the sections: types, bounds and defaults from their
fields, sentences from `Field(description=…)` and from the docstrings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from trainenv.config.other_names import called_here
from trainenv.config.presets import RENAMED_KEYS, listed, presets
from trainenv.config.schema import RunConfig
from trainenv.config.section import Config, section_in
from trainenv.config.written import in_a_line
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

_REQUIRED = ("steps", "batch_size", "model", "optimizer")  # in a file that extends no other
_BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}
_LARGEST_BOUND = 1e15  # a larger one is that of the machine's integers
_INTRODUCTION = """\
# Configuration keys

<!-- Generated: trainenv config --markdown > docs/configuration.md -->

A configuration is a preset ({presets})
or a YAML file that extends one:

```yaml
extends: tiny
steps: 3000
optimizer: {{lr: 1e-3}}
```

On the command line `--set optimizer.lr=1e-3` sets one key, in Python
`RunConfig.load("tiny", {{"optimizer.lr": 1e-3}})`. The shipped files are in [configs](../configs).

```bash
trainenv config tiny                   # every key with its value in a preset
trainenv config branching              # one section, or one key
trainenv config schema > schema.json   # JSON schema, with which editors complete and check keys
```

An editor with the YAML language server checks a file that begins with this line:

```yaml
# yaml-language-server: $schema=schema.json
```

This page is generated from the descriptions in [trainenv/config](../trainenv/config). After a
change there, write it anew:

```bash
trainenv config --markdown > docs/configuration.md
```
"""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: Dotted name, such as `optimizer.lr`.
        type: Type and bounds in words.
        value: Default, or value in the described configuration, as a JSON value.
        required: True if there is no default and no configuration was given.
        description: One or two sentences.
    """

    name: str
    type: str
    value: Any
    required: bool
    description: str

    @property
    def text(self) -> str:
        """Value as it is written in a YAML file; `required` if there is none."""
        if self.required:
            return "required"
        return in_a_line(self.value)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Keys that are described together.

    Attributes:
        name: Dotted name; empty for the keys that are in no section.
        about: Paragraphs that introduce the section.
        keys: Keys in the order of the fields.
    """

    name: str
    about: str
    keys: Sequence[Key]


def sections(config: RunConfig | None = None) -> list[Section]:
    """List the keys by section, with defaults, or with the values of a configuration."""
    return list(_sections(RunConfig, config, ""))


def keys(config: RunConfig | None = None) -> list[Key]:
    """List all keys, with defaults, or with the values of a configuration."""
    return [key for section in sections(config) for key in section.keys]


def select(name: str) -> list[Section]:
    """List one key, or the keys of one section, with their defaults.

    Args:
        name: Dotted name of a key or section, or the last part of a key's name: `every` is a key of
            three sections.

    Raises:
        UserError: There is no such key or section.
    """
    there = sections()
    found = []
    for section in there:
        chosen = [key for key in section.keys if _is_named(key.name, name)]
        if chosen:
            found.append(Section(name=section.name, about=section.about, keys=chosen))
    if found:
        return found
    names = [section.name for section in there]
    names += [key.name for section in there for key in section.keys]
    names += [full.rpartition(".")[2] for full in names]
    meant = called_here(name.rpartition(".")[2]) or nearest(name, [*names, *presets()])
    raise UserError(
        f"unknown configuration key {name!r}{meant}; give a key such"
        f" as optimizer.lr, a section such as branching, or a preset: {listed(presets())}"
    )


def markdown() -> str:
    """Return the page of all keys with their defaults, as it is in `docs/configuration.md`."""
    parts = [_INTRODUCTION.format(presets=listed([f"`{name}`" for name in presets()]))]
    for section in sections():
        title = "Top level"
        if section.name:
            title = f"`{section.name}`"
        rows = [
            "| key | type | default | description |",
            "|---|---|---|---|",
            *(_row(key) for key in section.keys),
        ]
        parts.append("\n\n".join([f"## {title}", section.about, "\n".join(rows)]) + "\n")
    old = [
        f"| `{section}.{before}` | `{section}.{after}` |"
        for section, renamed in RENAMED_KEYS.items()
        for before, after in renamed.items()
    ]
    about = "Keys in an old spelling are still read, with a warning, for one version."
    table = "\n".join(["| old | new |", "|---|---|", *old])
    parts.append(f"## Old spellings\n\n{about}\n\n{table}\n")
    return "\n".join(parts)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for completion and checks in an editor.

    A file that extends another may leave out any key.
    """
    schema = RunConfig.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        if section["title"] != "Plant":  # a planted event extends nothing
            section.pop("required", None)
    extends = {
        "type": "string",
        "description": "Preset, or path of the YAML file, that this file is on top of.",
        "examples": presets(),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Configuration of a trainenv run",
        "properties": {"extends": extends, **schema["properties"]},
        "anyOf": [{"required": ["extends"]}, {"required": list(_REQUIRED)}],
    }


def _sections(model: type[Config], values: Config | None, name: str) -> Iterator[Section]:
    """List a section, then those inside it.

    Args:
        model: Class of the section.
        values: Its values; None for the defaults of its fields.
        name: Dotted name of the section; empty for the whole configuration.
    """
    schema = model.model_json_schema()
    found = []
    inside = []
    for part, field in model.model_fields.items():
        dotted = f"{name}.{part}".removeprefix(".")
        below = section_in(field.annotation)
        if values is None:
            value = field.get_default(call_default_factory=True)
        else:
            value = getattr(values, part)
        if below is field.annotation:
            assert below is not None
            if not isinstance(value, Config):  # a section without a default
                value = None
            inside.append((below, value, dotted))
            continue
        required = values is None and field.is_required()
        if required:
            value = None
        found.append(
            Key(
                name=dotted,
                type=_type(schema["properties"][part], schema.get("$defs", {})),
                value=to_jsonable_python(value),
                required=required,
                description=field.description or "",
            )
        )
        if below is not None:  # a list of sections
            inside.append((below, None, f"{dotted}[]"))
    yield Section(name=name, about=inspect.getdoc(model) or "", keys=found)
    for below, known, dotted in inside:
        yield from _sections(below, known, dotted)


def _is_named(key: str, name: str) -> bool:
    """Tell if a name is that of a key, of the section around it, or the last part of either."""
    return f".{name}.".replace("[]", "") in f".{key}.".replace("[]", "")


def _row(key: Key) -> str:
    """Write a key as a row of a Markdown table."""
    value = key.text
    if not key.required:
        value = f"`{value}`"
    return f"| `{key.name}` | {key.type} | {value} | {key.description} |"


def _type(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Describe the type of a value, from its part of a JSON schema."""
    if "$ref" in schema:
        return _type(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " or ".join(_type(part, defs) for part in schema["anyOf"])
    if "prefixItems" in schema:
        return f"[{', '.join(_type(part, defs) for part in schema['prefixItems'])}]"
    if "items" in schema:
        return f"list of: {_type(schema['items'], defs)}"
    names = {"boolean": "true or false", "string": "text", "object": "mapping"}
    words = names.get(schema["type"], schema["type"])
    if schema.get("format") == "path":
        words = "path"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in _BOUNDS.items()
        if abs(schema.get(key, math.inf)) < _LARGEST_BOUND
    ]
    return " ".join([words, " and ".join(bounds)]).strip()
