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


@contextmanager
def as_user_error(action: str) -> Iterator[None]:
    """Turn an `OSError` inside into a `UserError` that names the action, the cause and a remedy."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "correct this")
        raise UserError(
            f"{action} failed: the system reported {cause!r}; {remedy}, then try again"
        ) from None
