"""Files that are written whole or not at all.

The content goes into a temporary file next to the place, `.NAME.RANDOM.tmp`, which is then renamed.
A reader sees the old file or the new one, never a part. After a crash the temporary file may stay.
Its name is drawn, not made of the process id: containers that share a folder have the same ids.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainenv.tools import portable
from trainenv.tools.json_lines import plain


@contextmanager
def replacing(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """Yield a temporary path, to be written in the block; after the block it replaces `path`.

    If the block or the rename fails, the temporary file is deleted and `path` is as before.

    Args:
        path: Place of the file. Its folder must exist.
        fsync: Flag: wait until the content is on the disk before the rename, so that the file is
            whole even after a power cut.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if fsync:
            portable.sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes | memoryview, *, fsync: bool = False) -> None:
    """Write a file whole or not at all; text as UTF-8.

    Args:
        path: Place of the file. Its folder must exist.
        content: All that the file is to hold.
        fsync: See `replacing`.

    Raises:
        OSError: The file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, fsync=fsync) as temporary:
        temporary.write_bytes(data)


def write_json(
    path: Path, value: Mapping[str, Any], *, indent: int = 1, fsync: bool = False
) -> None:
    """Write strict JSON whole or not at all; non-finite numbers become null.

    Args:
        path: Place of the file. Its folder must exist.
        value: Object that the file is to hold.
        indent: Spaces by which each level is indented.
        fsync: See `replacing`.

    Raises:
        OSError: The file cannot be written.
    """
    write_file(path, json.dumps(plain(value), indent=indent) + "\n", fsync=fsync)
