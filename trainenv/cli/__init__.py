"""Command line, one file a command.

    python -m trainenv run tiny --out runs/mine
    code = main(["run", "tiny", "--out", "runs/mine"])

Each command returns a JSON object and an exit code: 0 done, 1 a check found a fault or the run has
diverged, 2 a mistake of the user, 130 interrupted, 141 the output was closed. Heavy packages are
imported inside the commands, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.checkpoint import add_checkpoint
from trainenv.cli.compare import add_compare
from trainenv.cli.config import add_config
from trainenv.cli.decode import add_decode
from trainenv.cli.demo import add_demo
from trainenv.cli.doctor import add_doctor
from trainenv.cli.fork import add_fork
from trainenv.cli.options import INTERRUPTED, USER_ERROR
from trainenv.cli.replay import add_replay
from trainenv.cli.report import add_report
from trainenv.cli.run import add_run
from trainenv.cli.runs import add_runs
from trainenv.cli.streams import (
    CLOSED_PIPE,
    closed_output,
    complain,
    lost_output,
    prepare_streams,
    settle_errors,
)
from trainenv.cli.watch import add_top, add_watch
from trainenv.cli.wmtp import add_wmtp
from trainenv.cli.worldmodel import add_worldmodel
from trainenv.tools.paths import expanded
from trainenv.tools.version import VERSION
from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CLOSED_PIPE", "INTERRUPTED", "USER_ERROR", "main", "make_parser"]

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: Words after `trainenv`; those of the process if left out.
    """
    prepare_streams()
    try:
        args = make_parser().parse_args(arguments)
    except SystemExit:  # help was printed, or an argument is wrong
        settle_errors()
        lost = lost_output()
        if lost is None:
            raise
        return lost
    code = _answer(args)
    settle_errors()
    return code


def _answer(args: argparse.Namespace) -> int:
    """Run a command; whatever a user can correct becomes a sentence."""
    try:
        _expand_paths(args)
        with _warnings_in_sentences():
            result, code = args.command(args)
        if args.json and result:
            print(json.dumps(result))
    except (BrokenPipeError, SystemExit):  # rich turns the one into the other
        return closed_output()
    except UserError as error:
        complain(str(error))
        code = USER_ERROR
    except OSError as error:
        if (lost := lost_output()) is not None:  # here, where an error becomes a sentence
            return lost
        sentence = _describe_os_error(error)
        if not sentence:
            raise
        complain(sentence)
        code = USER_ERROR
    except KeyboardInterrupt:
        code = INTERRUPTED
    lost = lost_output()
    if lost is not None and not code:
        return lost
    return int(code)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="trainenv", description="Train language models in runs that can be forked and steered."
    )
    parser.add_argument("--version", action="version", version=f"trainenv {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    add_fork(commands)
    add_runs(commands)
    add_demo(commands)
    add_compare(commands)
    add_report(commands)
    add_watch(commands)
    add_top(commands)
    add_replay(commands)
    add_checkpoint(commands)
    add_worldmodel(commands)
    add_decode(commands)
    add_wmtp(commands)
    add_config(commands)
    add_doctor(commands)
    return parser


def _expand_paths(args: argparse.Namespace) -> None:
    """Expand `~` in paths, which a shell leaves alone in --out=~/mine.

    Raises:
        UserError: There is no home folder, or an option has no value.
    """
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, expanded(value))
        elif value == [] and name != "set":  # as argparse reads --out=--
            raise UserError(
                f"expected a value in --{name}=--, found none; write ./-- if that is a name"
            )


def _describe_os_error(error: OSError) -> str:
    """Describe an error that the user can correct; empty for others, such as a broken pipe."""
    if error.filename:
        return f"{error.filename}: {error.strerror}; give another path, or correct that one"
    if error.errno in _FULL_DISK:  # a write does not name its file
        return f"a file can't be written: {error.strerror}; make room, or give another folder"
    return ""


@contextmanager
def _warnings_in_sentences() -> Iterator[None]:
    """Print warnings as sentences on stderr, without the line of source that caused them."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        kind = ""
        if category is not UserWarning:
            kind = f"{category.__name__}: "
        complain(f"{kind}{message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
