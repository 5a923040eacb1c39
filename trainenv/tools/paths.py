"""Paths as people type them: `~` is the home folder, wherever the path comes from."""

from __future__ import annotations

import shlex
from pathlib import Path

from trainenv.types import UserError


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~name` at its start expanded; a name that no user has is part of a file's name, as in a shell.

    Raises:
        UserError: the user has no home folder, or it is no path at all.
    """
    if "\0" in str(path):
        raise UserError(
            f"expected a path, found {str(path)!r}, which has a zero byte in it; give another"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if Path(path).parts[0] != "~":
            return Path(path)
        raise UserError(
            f"expected a home folder for the ~ in {path}, found none: HOME is not set; set it, or give the whole path"
        ) from None


def absolute(path: str | Path) -> Path:
    """The path from the root of the file system: `~` is expanded first. Links and `..` stay.

    Raises:
        UserError: there is no home folder, or the current folder was deleted.
    """
    try:
        return expanded(path).absolute()
    except OSError as error:
        raise UserError(
            f"{path} is relative to the current folder, found: {error.strerror}; give the whole path"
        ) from None


def typed(path: Path) -> str:
    """The path as an argument of a command line."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
