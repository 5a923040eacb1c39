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
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import contextmanager, suppress
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
from trainenv.cli.watch import add_top, add_watch
from trainenv.cli.wmtp import add_wmtp
from trainenv.cli.worldmodel import add_worldmodel
from trainenv.tools.paths import expanded
from trainenv.tools.version import VERSION
from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CLOSED_PIPE", "INTERRUPTED", "USER_ERROR", "main", "make_parser"]

CLOSED_PIPE = 141  # as a shell reports a program that wrote into a closed pipe
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: Words after `trainenv`; those of the process if left out.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A letter that the terminal lacks must not end a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    args = make_parser().parse_args(arguments)
    try:
        _expand_paths(args)
        with _warnings_in_sentences():
            result, code = args.command(args)
        if args.json and result:
            print(json.dumps(result))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error becomes a sentence
    except (BrokenPipeError, SystemExit):  # rich turns the one into the other
        _drop_output()
        return CLOSED_PIPE
    except UserError as error:
        print(f"trainenv: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        sentence = _describe_os_error(error)
        if not sentence:
            raise
        print(f"trainenv: {sentence}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return int(code)


def _drop_output() -> None:
    """Say that the output was closed, and send what is still to be written nowhere.

    Python would else try it again when it ends, and fail with a traceback.
    """
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    with suppress(OSError):
        print("trainenv: the output was closed before its end", file=sys.stderr)


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
        print(f"trainenv: {kind}{message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
