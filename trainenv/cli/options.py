"""Parts that several commands share: arguments, `KEY=VALUE` overrides, and a request to stop."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

DIVERGED = 1
USER_ERROR = 2
INTERRUPTED = 130
Result = tuple[dict[str, Any], int]
"""The object that a command prints with `--json`, and its exit code."""
Command = Callable[[argparse.Namespace], Result]

_NULL = ("", "~", "null", "Null", "NULL")  # as YAML spells it


def add_command(commands: Any, name: str, command: Command, about: str) -> argparse.ArgumentParser:
    """Add a command, with its option `--json`.

    Args:
        commands: Subparsers to add it to, as argparse returns them.
        name: Word that is typed.
        command: Function that runs it.
        about: Sentence for `--help`.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.set_defaults(command=command)
    return parser


def add_actions(commands: Any, name: str, about: str) -> Any:
    """Add a command that has commands of its own, and return the subparsers to add them to."""
    parser = commands.add_parser(name, help=about, description=about)
    return parser.add_subparsers(required=True, metavar="ACTION", dest="action")


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the option `--set KEY=VALUE`, which may be given several times."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"configuration key to override, for example --set {example}",
    )


def add_executor(parser: argparse.ArgumentParser, default: str | None = "local") -> None:
    """Add the option `--executor`, the place of the worker processes."""
    parser.add_argument(
        "--executor",
        default=default,
        metavar="NAME",
        help="place of the worker processes: local, ray, or ray://HOST:PORT for a Ray cluster"
        " (default: local)",
    )


def as_path(text: str) -> Path:
    """Read a path among the arguments."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty one")
    return Path(text)


def overrides_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` pairs.

    Names, paths and choices are text as it is typed, or quoted; other values are read as YAML.

    Raises:
        UserError: A pair has no `=`, no key, or a value that is not valid YAML.
    """
    from trainenv.config.presets import parse_value

    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(
                f"--set takes KEY=VALUE, found {pair!r}; for example --set optimizer.lr=1e-3"
            )
        overrides[key] = value
        if not _is_text(key, value.strip()):
            try:
                overrides[key] = parse_value(value)
            except ValueError:
                raise UserError(
                    f"--set {key}: the value {value!r} is not valid YAML; quote it"
                ) from None
    return overrides


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C or SIGTERM into a request to stop at the next block; a second one stops at once.

    Yields:
        A function that returns True once a stop was requested.
    """
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request) for number in signals}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_text(key: str, value: str) -> bool:
    """Tell if a value is text as it is typed, whatever YAML would read."""
    from trainenv.config.schema import takes_text

    return takes_text(key) and value not in _NULL and value[0] not in "\"'"
