"""`trainenv config`: describe the configuration keys, for people and for editors."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import Result, add_actions, add_command
from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainenv.config.describe import Section

_WIDEST = 1000  # characters of a line in a file or a pipe, where no window cuts it


def add_config(commands: Any) -> None:
    """Add the command and its actions."""
    actions = add_actions(commands, "config", "Describe the configuration keys.")
    describe = add_command(
        actions,
        "describe",
        describe_command,
        "Print each configuration key with its type, default and description.",
    )
    describe.add_argument(
        "what",
        nargs="?",
        metavar="KEY|PRESET",
        help="key or section to describe, or a preset or YAML file whose values replace the"
        " defaults (default: all keys)",
    )
    describe.add_argument(
        "--markdown", action="store_true", help="print all keys as a page of Markdown"
    )
    add_command(
        actions,
        "schema",
        schema_command,
        "Print the JSON schema of configuration files, with which editors complete and check keys.",
    )


def describe_command(args: argparse.Namespace) -> Result:
    """Print a table of keys for each section."""
    from trainenv.config.describe import markdown, sections, select
    from trainenv.config.presets import presets
    from trainenv.config.schema import RunConfig

    if args.markdown:
        if args.what is not None or args.json:
            raise UserError(
                "--markdown prints the page of all keys, found another argument; give it alone"
            )
        sys.stdout.write(markdown())
        return {}, 0
    source = None
    if args.what is None:
        found = sections()
    elif args.what in presets() or args.what.endswith((".yaml", ".yml")):
        source = args.what
        found = sections(RunConfig.load(source))
    else:
        found = select(args.what)
    if not args.json:
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


def schema_command(args: argparse.Namespace) -> Result:
    """Print the JSON schema."""
    from trainenv.config.describe import json_schema

    schema = json_schema()
    if not args.json:
        print(json.dumps(schema, indent=2, ensure_ascii=False))
    return {"command": "config schema", "schema": schema}, 0


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
