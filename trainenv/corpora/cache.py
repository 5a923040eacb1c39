"""Files made once and read often: tokens and trained tokenizers. Written whole or not at all, checked when read.

An entry is a data file and a JSON sidecar `<name>.json` with its size and hash. Data and sidecar are each written to a
temporary name and renamed, the data first: an entry without a matching sidecar was never finished, and counts as absent.
What an entry holds is a pure function of its name, so processes that write the same entry at once do no harm.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import xxhash

from trainenv.types import UserError

FORMAT = "trainenv corpus cache 1"


def folder(configured: Path | None) -> Path:
    """Where entries live: the configuration's `cache`, else $TRAINENV_CACHE, else ~/.cache/trainenv."""
    if configured is not None:
        return configured.expanduser()
    return Path(os.environ.get("TRAINENV_CACHE") or "~/.cache/trainenv").expanduser()


def write(path: Path, data: bytes | memoryview, **facts: Any) -> None:
    """Keep `data` and some JSON `facts` about it under `path`.

    Raises:
        UserError: the folder cannot be written.
    """
    sidecar = {"format": FORMAT, "size": len(data), "digest": xxhash.xxh3_128_hexdigest(data), "facts": facts}
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
