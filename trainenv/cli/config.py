"""`trainenv config`: describe the configuration keys, for people and for editors.

trainenv config                         every key
trainenv config optimizer.lr            one key or section
trainenv config tiny                    every key with its value in a preset or file
trainenv config schema > schema.json    JSON schema for editors
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import Result, add_command
from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainenv.config.describe import Section

_WIDEST = 1000  # characters of a line in a file or a pipe, where no window cuts it
_FEW = 3  # keys that are described in lines of their own instead of a table
_DESCRIBE = "describe"
_SCHEMA = "schema"


def add_config(commands: Any) -> None:
    """Add the command."""
    config = add_command(
        commands,
        "config",
        config_command,
        "Describe the configuration keys: default, type, unit and meaning.",
    )
    config.add_argument(
        "what",
        nargs="?",
        metavar="KEY|PRESET|schema",
        help="key or section to describe, or a preset or YAML file whose values replace the"
        " defaults (default: all keys); schema prints the JSON schema of configuration files, with"
        " which editors complete and check keys",
    )
    # After the word `describe` of earlier versions.
    config.add_argument("which", nargs="?", help=argparse.SUPPRESS)
    config.add_argument(
        "--markdown", action="store_true", help="print all keys as a page of Markdown"
    )


def config_command(args: argparse.Namespace) -> Result:
    """Describe keys, or print the JSON schema."""
    if args.what == _DESCRIBE:
        return _describe(args, args.which)
    if args.which is not None:
        raise UserError(
            f"expected one key, section, preset or file, found {args.what} and {args.which}; give"
            " one of them"
        )
    if args.what == _SCHEMA and not args.markdown:
        return _schema(args)
    return _describe(args, args.what)


def _describe(args: argparse.Namespace, what: str | None) -> Result:
    """Print a table of keys for each section, or a few lines for a single key."""
    from trainenv.config.describe import markdown, sections, select
    from trainenv.config.presets import presets
    from trainenv.config.schema import RunConfig

    if args.markdown:
        if what is not None or args.json:
            raise UserError(
                "--markdown prints the page of all keys, found another argument; give it alone"
            )
        sys.stdout.write(markdown())
        return {}, 0
    source = None
    if what is None:
        found = sections()
    elif what in presets() or what.endswith((".yaml", ".yml")):
        source = what
        found = sections(RunConfig.load(source))
    else:
        found = select(what)
    few = sum(len(section.keys) for section in found) <= _FEW
    if few and not args.json:
        _print_keys(found)
    elif not args.json:
        _print_tables(found, source)
    rows = [
        {
            "key": key.name,
            "type": key.type,
            "value": key.value,
            "required": key.required,
            "description": key.description,
        }
        for section in found
        for key in section.keys
    ]
    return {"command": "config describe", "source": source, "keys": rows}, 0


def _schema(args: argparse.Namespace) -> Result:
    """Print the JSON schema."""
    from trainenv.config.describe import json_schema

    schema = json_schema()
    if not args.json:
        print(json.dumps(schema, indent=2, ensure_ascii=False))
    return {"command": "config schema", "schema": schema}, 0


def _print_keys(found: Sequence[Section]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for key in (key for section in found for key in section.keys):
        console.print(key.name, style="bold", markup=False)
        for line in (f"default: {key.text}", f"type: {key.type}", key.description):
            console.print(f"  {line}", markup=False)


def _print_tables(found: Sequence[Section], source: str | None) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDEST)
    for section in found:
        table = Table(
            title=section.name or "top level",
            title_justify="left",
            title_style="bold",
            box=SIMPLE,
            pad_edge=False,
        )
        for name in ("key", "type", source or "default", "description"):
            table.add_column(Text(name), overflow="fold")
        for key in section.keys:
            cells = (key.name, key.type, key.text, key.description)
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
