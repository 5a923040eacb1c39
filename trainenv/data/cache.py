"""Cache on disk for tokens and trained tokenizers, which are made once and read often.

An entry is a data file and a JSON sidecar `<name>.json` with its size and hash, which are checked
when it is read. Data and sidecar are each written to a temporary name and renamed, the data first:
an entry without a matching sidecar was never finished, and counts as absent. The content of an
entry is a pure function of its name, so several processes may write the same entry at once.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from trainenv.tools import portable
from trainenv.tools.atomic_files import write_file
from trainenv.tools.paths import absolute
from trainenv.types import UserError

FORMAT = "trainenv corpus cache 1"


def folder(configured: Path | None) -> Path:
    """Return the cache's folder: the configured one, else $TRAINENV_CACHE, else ~/.cache/trainenv.

    If there is no home folder, or it can't be written, entries go to the temporary folder, with a
    warning.
    """
    chosen = configured or os.environ.get("TRAINENV_CACHE")
    if chosen:
        return absolute(chosen)
    try:
        home = absolute("~/.cache/trainenv")
    except UserError:
        return _temporary("there is no home folder")
    if not _can_be_made(home):
        return _temporary(f"{home} can't be written")
    return home


def _can_be_made(path: Path) -> bool:
    """Tell if a folder exists, or the nearest existing one above it may be written."""
    if os.path.isdir(path):
        return True
    above = next(parent for parent in path.parents if os.path.lexists(parent))
    return os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)


@functools.cache
def _temporary(reason: str) -> Path:
    """Return a folder of this user in the temporary folder, and warn once."""
    try:
        root = Path(tempfile.gettempdir())
    except OSError:  # there is none; a later write fails with a clear message
        return Path("trainenv-cache").absolute()
    path = root / f"trainenv-cache-{portable.user_id()}"
    with suppress(OSError):
        path.mkdir(mode=0o700)
    if not _is_private(path):  # all users may write to `root`, so another user may have made it
        path = Path(tempfile.mkdtemp(prefix="trainenv-cache-"))
    warnings.warn(
        f"{reason}, so the corpus cache is in {path}; set TRAINENV_CACHE to keep it elsewhere",
        stacklevel=2,
    )
    return path


def _is_private(path: Path) -> bool:
    """Tell if `path` is a folder that belongs to this user and that no other user may write to."""
    try:
        found = path.lstat()
    except OSError:
        return False
    ours = found.st_uid == portable.user_id()
    return stat.S_ISDIR(found.st_mode) and ours and not found.st_mode & 0o022


def write(path: Path, data: bytes | memoryview, **facts: Any) -> None:
    """Store `data` under `path`, with `facts` about it that are JSON.

    Raises:
        UserError: The folder can't be written.
    """
    sidecar = {
        "format": FORMAT,
        "size": len(data),
        "digest": xxhash.xxh3_128_hexdigest(data),
        "facts": facts,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data, fsync=True)
        write_file(_sidecar(path), json.dumps(sidecar), fsync=True)
    except OSError as error:
        raise UserError(
            f"expected to be able to write the corpus cache at {path.parent}, found "
            f"{error.strerror or error}; set corpus.cache or TRAINENV_CACHE to a folder that you "
            "own, with free space"
        ) from None


def facts(path: Path) -> dict[str, Any] | None:
    """Return the facts about the entry at `path`; None where it is absent, torn or foreign."""
    try:
        sidecar = json.loads(_sidecar(path).read_bytes())
        if sidecar["format"] != FORMAT or path.stat().st_size != sidecar["size"]:
            return None
        digest = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
        noted = sidecar["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if digest.hexdigest() != sidecar["digest"] or not isinstance(noted, dict):
        return None
    return noted


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")
