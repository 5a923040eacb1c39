"""Streams of a process that is not at a usual terminal: closed, full, or of few letters."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal, TextIO

from trainenv.cli.options import USER_ERROR

CLOSED_PIPE = 141  # as a shell reports a program that wrote into a closed pipe
_HANDLER = "trainenv.letters"
# Letters that we write ourselves, for a terminal that lacks them.
_LETTERS = {
    "−": "-",
    "–": "-",
    "—": "-",
    "×": "x",
    "±": "+-",
    "·": ".",
    "…": "...",
    "→": "->",
    "“": '"',
    "”": '"',
    "’": "'",
    "Δ": "d",
    "≤": "<=",
    "≥": ">=",
    "√": "sqrt ",
    "÷": "/",
    "✔": "+",
    "✓": "+",
    "✘": "x",
    "✗": "x",
    "▲": "!",
    "↶": "<",
    "◆": "*",
    "◇": "o",
    "○": "o",
    "●": "*",
    "█": "#",
    "▇": "#",
    "▆": "=",
    "▅": "=",
    "▄": "-",
    "▃": "-",
    "▂": ".",
    "▁": "_",
    "│": "|",
    "─": "-",
    "━": "-",
    "╸": "-",
    "╺": "-",
    "├": "+",
    "└": "+",
    "ρ": "rho",
}


def prepare_streams() -> None:
    """Make the three streams safe to use, whatever they are.

    A closed one leads nowhere, so that no file of ours gets its number. A letter that a terminal
    lacks is replaced, and ends no command.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = _nowhere("r")
    if sys.stdout is None:
        sys.stdout = _nowhere("w")
    if sys.stderr is None:
        sys.stderr = _nowhere("w")
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors=_HANDLER)


def complain(sentence: str) -> None:
    """Print a sentence on stderr, if that can be written."""
    try:
        print(f"trainenv: {sentence}", file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):
        _drop(sys.stderr, 2)


def lost_output() -> int | None:
    """Write what is still to be written, and say so if that fails.

    Returns:
        The exit code if stdout could not be written; None if all is well.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return closed_output()
    except OSError as error:
        _drop(sys.stdout, 1)
        complain(f"the output can't be written: {error.strerror}; send it to another place")
        return USER_ERROR
    except ValueError:  # it was closed in Python
        return None
    return None


def closed_output() -> int:
    """Say that the output was closed, and return the exit code.

    What is still to be written goes nowhere. Python would else try it again when it ends, and fail
    with a traceback.
    """
    _drop(sys.stdout, 1)
    complain("the output was closed before its end")
    return CLOSED_PIPE


def settle_errors() -> None:
    """Write what is left for stderr; if it can't be written, it goes nowhere."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _drop(sys.stderr, 2)


def _nowhere(mode: Literal["r", "w"]) -> TextIO:
    return Path(os.devnull).open(mode, encoding="utf-8")  # for the life of the process


def _drop(stream: TextIO, number: int) -> None:
    """Let a stream lead nowhere."""
    with suppress(OSError, ValueError):
        number = stream.fileno()
    with suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), number)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace letters that an encoding lacks by similar ones, others by their number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = ""
    for letter in error.object[error.start : error.end]:
        if (code := ord(letter)) < 0x100:
            escaped = f"\\x{code:02x}"
        elif code < 0x10000:
            escaped = f"\\u{code:04x}"
        else:
            escaped = f"\\U{code:08x}"
        found += _LETTERS.get(letter, escaped)
    return found, error.end
