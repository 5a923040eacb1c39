"""Files made once and read often: tokens and trained tokenizers.

Written whole or not at all, checked when read.

An entry is a data file and a JSON sidecar `<name>.json` with its size and hash. Data and sidecar
are each written to a temporary name and renamed, the data first: an entry without a matching
sidecar was never finished, and counts as absent. What an entry holds is a pure function of its
name, so processes that write the same entry at once do no harm.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import stat
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from trainenv.tools import portable
from trainenv.tools.paths import absolute
from trainenv.types import UserError

FORMAT = "trainenv corpus cache 1"


def folder(configured: Path | None) -> Path:
    """Where entries live: the configuration's `cache`, else $TRAINENV_CACHE, else ~/.cache/trainenv.

    Where there is no home folder, or it can't be written, they live in the temporary folder, and a
    warning says so.
    """
    chosen = configured or os.environ.get("TRAINENV_CACHE")
    if chosen:
        return absolute(chosen)
    try:
        home = absolute("~/.cache/trainenv")
    except UserError:
        return _temporary("there is no home folder")
    return home if _can_be_made(home) else _temporary(f"{home} can't be written")


def _can_be_made(path: Path) -> bool:
    """Whether a folder is there, or the nearest one above it may be written."""
    if os.path.isdir(path):
        return True
    above = next(parent for parent in path.parents if os.path.lexists(parent))
    return os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)


@functools.cache
def _temporary(reason: str) -> Path:
    """A folder of this user's in the temporary folder; said once."""
    try:
        root = Path(tempfile.gettempdir())
    except OSError:  # not even there: what is to be written will be refused in a sentence
        return Path("trainenv-cache").absolute()
    path = root / f"trainenv-cache-{portable.user_id()}"
    with suppress(OSError):
        path.mkdir(mode=0o700)
    if not _is_ours(path):  # everybody may write there, so somebody else may have made it
        path = Path(tempfile.mkdtemp(prefix="trainenv-cache-"))
    warnings.warn(
        f"{reason}, so that the corpus cache is in {path}; set TRAINENV_CACHE to keep it elsewhere",
        stacklevel=2,
    )
    return path


def _is_ours(path: Path) -> bool:
    """Whether it is a folder of this user's, that nobody else may write to."""
    try:
        found = path.lstat()
    except OSError:
        return False
    ours = found.st_uid == portable.user_id()
    return stat.S_ISDIR(found.st_mode) and ours and not found.st_mode & 0o022


def write(path: Path, data: bytes | memoryview, **facts: Any) -> None:
    """Keep `data` and some JSON `facts` about it under `path`.

    Raises:
        UserError: the folder cannot be written.
    """
    sidecar = {
        "format": FORMAT,
        "size": len(data),
        "digest": xxhash.xxh3_128_hexdigest(data),
        "facts": facts,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)
        _replace(_sidecar(path), json.dumps(sidecar).encode())
    except OSError as error:
        raise UserError(
            f"expected to be able to write the corpus cache at {path.parent}, found {error.strerror or error}; "
            "set corpus.cache or TRAINENV_CACHE to a folder that you own, with free space"
        ) from None


def facts(path: Path) -> dict[str, Any] | None:
    """What was noted about the entry at `path`; None where it is absent, torn or foreign."""
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
    return noted if digest.hexdigest() == sidecar["digest"] and isinstance(noted, dict) else None


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _replace(path: Path, data: bytes | memoryview) -> None:
    # Drawn, not made of process ids: containers that share a cache have the same ones.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
