"""A file of plain arrays and some JSON fields, whole or refused.

Reading trusts nothing that it has not checked: length of the file, digest of header and manifest,
format and version, memory needed, each chunk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainenv.tools.disk_errors import as_user_error
from trainenv.tools.tensor_file import chunks, compression, front
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.tools.tensor_file.layout import locate_chunks, manifest_bytes, plain_part
from trainenv.tools.tensor_file.untrusted import parse_json, short
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class ArrayFormat:
    """A format of array files.

    Args:
        kind: Kind of file, for errors.
        version: Version of the fields and arrays; another is refused.
    """

    kind: chunks.Kind
    version: int

    @property
    def name(self) -> str:
        """Name that the header has."""
        return f"trainenv {self.kind.name}"

    def save(
        self,
        path: Path,
        fields: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        disk: Disk | None = None,
    ) -> None:
        """Write a file, whole or not at all.

        Args:
            path: Place of the file. Its folder is made if it is missing.
            fields: JSON values.
            arrays: Arrays by name.
            disk: File system; the real one by default.

        Raises:
            UserError: The disk is full or fails; the file at `path` is as before.
        """
        disk = disk or Disk()
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
        specs = {
            name: (front.dtype_name(name, tensor, self._article), list(tensor.shape))
            for name, tensor in tensors.items()
        }
        layout = [plain_part(name, *spec) for name, spec in specs.items()]
        header = json.dumps(
            {
                "format": self.name,
                "schema": self.version,
                "fields": dict(fields),
                "tensors": specs,
            }
        ).encode()
        try:
            front.check_front_size(header, layout)
        except ValueError as error:
            raise UserError(f"{path} can't be written: {error}; save fewer arrays") from None
        with as_user_error(f"saving {path}"):
            disk.make_folder(path.parent)
            chunks.write(
                path, header, layout, (compression.words(t) for t in tensors.values()), disk
            )

    def load(self, path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Read a file and verify every checksum; return its fields and arrays.

        Raises:
            BrokenFile: The file is torn, damaged or of another format.
            UserError: The file does not exist, or needs more memory than is available.
        """
        with chunks.opened(path, self.kind) as file:
            try:
                text, manifest, _ = front.read_front(file, self._article)
                fields, specs = self._checked(parse_json(text))
                layout = [plain_part(name, *spec) for name, spec in specs.items()]
                if len(manifest) != manifest_bytes(layout):
                    raise ValueError(
                        f"its manifest should have {manifest_bytes(layout)} bytes, found "
                        f"{len(manifest)}"
                    )
                places = locate_chunks(
                    layout,
                    parse_json(manifest),
                    path.stat().st_size,
                    front.chunks_start(text, layout),
                )
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise self.kind.broken(f"{path} is no whole {self.kind.name}: {error}") from None
            chunks.check_memory(sum(part.words * part.word_size for part in layout), path)
            words = chunks.read(file, path, layout, places, self.kind)
        arrays: dict[str, NDArray[Any]] = {
            name: compression.tensor(words[name], compression.DTYPES[dtype], shape).numpy()
            for name, (dtype, shape) in specs.items()
        }
        return fields, arrays

    @property
    def _article(self) -> str:
        return f"a {self.kind.name}"

    def _checked(
        self, header: Any
    ) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
        """Return the fields, and dtype and shape of each array.

        Raises:
            ValueError: The header is of another format or version, or an array is impossible.
        """
        if not isinstance(header, dict) or header.get("format") != self.name:
            found = header.get("format") if isinstance(header, dict) else header
            raise ValueError(f"its format is {short(found)}, {self._article}'s {self.name!r}")
        if header.get("schema") != self.version:
            raise ValueError(
                f"its version is {short(header.get('schema'))}, this trainenv reads version "
                f"{self.version}"
            )
        fields = header["fields"]
        if not isinstance(fields, dict):
            raise ValueError("its fields must be a mapping")
        specs: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, spec in header["tensors"].items():
            dtype, shape = spec
            if not all(type(size) is int for size in shape):
                raise ValueError(f"{short(name)} has an impossible shape")
            specs[name] = front.check_spec(name, dtype, shape)
        return fields, specs
