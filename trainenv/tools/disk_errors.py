"""Errors of the file system in one sentence: the action, the cause and a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from trainenv.types import UserError

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EIO: "check the disk, or give a folder on another",
    errno.EROFS: "make the disk writable, or give a folder on another",
    errno.ENOTDIR: "give another folder",
    errno.EACCES: "make the folder writable, or give another",
}
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def as_user_error(action: str, *, or_else: str = "") -> Iterator[None]:
    """Turn an `OSError` inside into a `UserError` that names the action, the cause and a remedy.

    Args:
        action: Action that may fail, as the sentence begins.
        or_else: Another way to free space, named where the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{action} failed: {cause(error)}. {remedy(error, or_else=or_else)}"
        ) from None


def cause(error: BaseException) -> str:
    """Describe the cause of a failed action."""
    if isinstance(error, OSError):
        return f"the system reported {error.strerror or str(error)!r}"
    return "there is too little memory"


def remedy(error: BaseException, *, or_else: str = "") -> str:
    """Return the sentence that says what to do.

    Args:
        error: Error of the file system, or of memory.
        or_else: Another way to free space, named where the disk is full.
    """
    found = "free some memory"
    if isinstance(error, OSError):
        found = _REMEDIES.get(error.errno or 0, "correct this")
        if or_else and error.errno in _FULL:
            found = f"{found} ({or_else})"
    return f"{found.capitalize()}, then try again"
