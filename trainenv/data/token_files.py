"""Batches by data index from files of tokens (`.bin`), as nanoGPT writes them, memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainenv.data.permutation import ShuffledRows
from trainenv.data.tokenizers import IntArray
from trainenv.tools.checks import choice, whole
from trainenv.types import UserError, as_bool

Width = Literal["uint16", "uint32"]
_WIDTHS = ("uint16", "uint32")
# Header of the files of llm.c and modded-nanogpt: 256 words of 32 bits; the third is the number of
# tokens. Those of nanoGPT have none.
_MAGIC = 20240520
_HEADER = 1024  # bytes


@dataclass(frozen=True, kw_only=True)
class TokenFileBatches:
    """Batches of sequences from token files, a pure function of the data index.

        batches = TokenFileBatches(files=["train.bin"], context=1024, batch_size=12)
        run = TrainingRun(model, optimizer, batches, {"steps": 1000})

    The files are memory-mapped, and the order of the sequences is computed, not stored. In an epoch
    each sequence occurs at most once, in an order that differs between epochs. A sequence starts at
    the last target of the one before, and never crosses the border of a file.

    Args:
        files: Files of tokens, one or several. A header as llm.c writes it is skipped.
        context: Number of inputs of a sequence; it has one token more, the last target.
        batch_size: Number of sequences of a batch.
        seed: Random seed of the order.
        shuffle: False to keep the order of the files in every epoch.
        dtype: Type of a token in the files, `uint16` or `uint32`, little-endian.

    Attributes:
        epoch_steps: Number of batches in an epoch.

    Raises:
        UserError: A file is missing or is no file of tokens, or there are too few of them.
    """

    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    context: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    dtype: Width = "uint16"
    epoch_steps: int = field(default=0, init=False)
    _arrays: tuple[IntArray, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("context", 1), ("batch_size", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least=least))
        object.__setattr__(self, "shuffle", as_bool(self.shuffle, "shuffle"))
        paths = _paths(self.files)
        object.__setattr__(self, "files", paths)
        object.__setattr__(self, "_arrays", tuple(mapped(path, self.dtype) for path in paths))
        sequences = int(self._ends[-1])
        if sequences < self.batch_size:
            raise UserError(
                f"expected at least batch_size ({self.batch_size}) sequences of {self.context} + 1 "
                f"tokens in {len(paths)} file(s), found {sequences}; give more tokens, or a smaller"
                " context or batch_size"
            )
        object.__setattr__(self, "epoch_steps", sequences // self.batch_size)

    @property
    def _ends(self) -> IntArray:
        """Number of sequences in the files up to each one, [files]."""
        counts = [max(0, (len(array) - 1) // self.context) for array in self._arrays]
        return np.cumsum(counts, dtype=np.int64)

    def __call__(self, index: int, /) -> Tensor:
        """Return the tokens [batch_size, context + 1], int64, of data index `index` ≥ 0."""
        ends = self._ends
        order = ShuffledRows(
            rows=int(ends[-1]), batch_size=self.batch_size, seed=self.seed, shuffle=self.shuffle
        )
        rows = order(index)  # [batch_size]
        files = np.searchsorted(ends, rows, side="right")
        tokens = np.empty((self.batch_size, self.context + 1), np.int64)
        for place, (row, file) in enumerate(zip(rows.tolist(), files.tolist())):
            before = int(ends[file - 1]) if file else 0
            start = (row - before) * self.context
            tokens[place] = self._arrays[file][start : start + self.context + 1]
        return torch.from_numpy(tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenFileBatches:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the paths alone; the files are mapped again."""
        return _made, (
            self.files,
            self.context,
            self.batch_size,
            self.seed,
            self.shuffle,
            self.dtype,
        )


def _made(
    files: Sequence[Path], context: int, batch_size: int, seed: int, shuffle: bool, dtype: Width
) -> TokenFileBatches:
    return TokenFileBatches(
        files=files,
        context=context,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        dtype=dtype,
    )


def mapped(path: Path, dtype: Width = "uint16") -> IntArray:
    """Return the tokens of a file, memory-mapped and read-only.

    Raises:
        UserError: The file is missing, is empty, or does not hold whole tokens.
    """
    choice("dtype", dtype, _WIDTHS)
    size = np.dtype(dtype).itemsize
    try:
        there = path.stat().st_size
        with path.open("rb") as opened:
            head = np.frombuffer(opened.read(_HEADER), np.uint8)
    except OSError as error:
        raise UserError(
            f"expected a file of tokens at {path}, found {error.strerror}; give a path that exists"
        ) from None
    skipped = 0
    if len(head) == _HEADER and int(head.view("<i4")[0]) == _MAGIC:
        skipped = _HEADER
        there = min(there, _HEADER + size * int(head.view("<i4")[2]))
    if there == skipped or (there - skipped) % size:
        raise UserError(
            f"expected tokens of {size} bytes in {path}, found {there - skipped} bytes; give a file"
            " that numpy.ndarray.tofile wrote, with its dtype"
        )
    count = (there - skipped) // size
    return np.memmap(path, f"<u{size}", mode="r", offset=skipped, shape=(count,))


def _paths(files: object) -> tuple[Path, ...]:
    if isinstance(files, str | os.PathLike):
        files = [files]
    if not isinstance(files, Iterable):
        raise UserError(
            f"files must be paths of token files, found {type(files).__name__}; give ['train.bin']"
        )
    paths = tuple(Path(file).expanduser().absolute() for file in files)
    if not paths:
        raise UserError("files must be paths of token files, found none; give ['train.bin']")
    return paths
