"""Paths as people type them: `~` means the home folder on the command line and in files."""

from __future__ import annotations

import shlex
from pathlib import Path

from trainenv.types import UserError


def expanded(path: str | Path) -> Path:
    """Expand `~` and `~name` at the start of a path.

    As in a shell, `~name` stays as it is if no user has that name.

    Raises:
        UserError: The user has no home folder, or the text is not a path.
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
            f"expected a home folder for the ~ in {path}, found none: HOME is not set; "
            "set it, or give the whole path"
        ) from None


def absolute(path: str | Path) -> Path:
    """Return the path from the root of the file system; `~` is expanded, links and `..` stay.

    Raises:
        UserError: There is no home folder, or the current folder was deleted.
    """
    try:
        return expanded(path).absolute()
    except OSError as error:
        raise UserError(
            f"expected a current folder for the relative path {path}, found: {error.strerror}; "
            "give the whole path"
        ) from None


def typed(path: Path) -> str:
    """Return the path quoted as an argument of a command line."""
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"
    return shlex.quote(text)
