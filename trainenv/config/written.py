"""Configurations as they are written into the folder of a run: YAML with a comment for each key."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from trainenv.config.section import Config, section_in

_HEAD = (
    "# Configuration of this run; `trainenv config KEY` says more about a key, "
    "`trainenv run FILE` trains\n# another run with it.\n"
)
_WIDTH = 100


def as_yaml(config: Config) -> str:
    """Return a configuration as YAML, with the first sentence about each key above it."""
    return _HEAD + "\n".join(_lines(config, "")) + "\n"


def in_a_line(value: Any) -> str:
    """Return a value as it is written in a YAML file, on one line."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def _lines(section: Config, indent: str) -> Iterator[str]:
    """Yield the lines of a section; sections inside it are indented."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        inside = getattr(section, name)
        if isinstance(inside, Config) and section_in(field.annotation) is type(inside):
            yield ""
            yield f"{indent}{name}:"
            yield from _lines(inside, f"{indent}  ")
            continue
        sentence = _first_sentence(field.description or "")
        yield from textwrap.wrap(
            sentence,
            width=_WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
        )
        yield f"{indent}{name}: {in_a_line(values[name])}"


def _first_sentence(text: str) -> str:
    """Return the text up to the first full stop that ends a sentence."""
    return text.split(". ")[0].rstrip(".")
