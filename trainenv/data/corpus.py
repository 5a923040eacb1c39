"""A corpus: tokens and their fixed split, and where sequences are cut from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainenv.data.tokenizers import IntArray
from trainenv.types import UserError

Indices = npt.NDArray[np.int64]
Run = tuple[int, int]

# segments after which the pattern of the split repeats: 2 of them are validation, 1 is probe
PERIOD = 80
# places of held-out segments in a period
VALIDATION = (19, 59)
PROBE = (39,)
PERIODS = 8  # at most, where segments are long enough
LONG_ENOUGH = 16384  # tokens of a segment: long sequences fit into it
FEWEST = 8 * PERIOD  # tokens of the shortest text that can be split


class Growing(Protocol):
    """Tokens that are made when they are asked for (`stream.TokenStream`)."""

    def grow(self, stop: int) -> int:
        """How many of the first `stop` tokens there are: all of them, unless the stream ends before."""
        ...

    def cut(self, starts: Indices, length: int) -> Indices: ...

    @property
    def limit(self) -> int | None: ...


@dataclass(frozen=True, eq=False)
class Split:
    """A part of a token array: runs of contiguous tokens, as (start, stop).

    Sequences never leave their run.
    """

    tokens: IntArray = field(repr=False)
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """Its tokens."""
        return sum(stop - start for start, stop in self.runs)

    def starts(self, context: int) -> Indices:
        """Where the sequences of `context` inputs and one more target start, [n]; each starts at the last one's last target."""
        parts = [
            np.arange(start, stop - context, context, dtype=np.int64) for start, stop in self.runs
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def pulled_in(self, starts: Indices, length: int) -> Indices:
        """`starts` moved back so far that `length` tokens fit into their run; those in a shorter run move to the longest.

        Raises:
            UserError: no run is so long.
        """
        first, last = np.array(self.runs, np.int64).T  # (runs,), (runs,)
        longest = int(np.argmax(last - first))
        if last[longest] - first[longest] < length:
            raise UserError(
                f"expected {length} contiguous training tokens for a long sequence, found at most {(last - first).max()}; "
                "give more text or a smaller context or stressors.long_factor"
            )
        run = np.searchsorted(first, starts, side="right") - 1
        run = np.where(last[run] - first[run] < length, longest, run)
        return np.clip(starts, first[run], last[run] - length)

    def cut(self, starts: Indices, length: int) -> Indices:
        """The `length` tokens from each start, [n, length] int64."""
        tokens = self.tokens
        item = self.tokens.itemsize
        # Overlapping rows over the same memory: one indexing operation copies what it needs.
        rows: IntArray = np.ndarray(
            (len(tokens) - length + 1, length), tokens.dtype, tokens, 0, (item, item)
        )
        return rows[starts].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens. Immutable: copies share the tokens.

    Args:
        name: the configuration's.
        train: what batches are made from; a stream's tokens grow as they are asked for.
        validation, probe: held out, the same for every seed. No token is in two of the three.
        vocab_size: one more than the greatest token.
        digest: a hash of tokenizer and content, the same on every machine that has the same text.
        rare: the rarest tokens, whether they occur or not, ascending [n].
        artefacts: tokens of a text gone wrong in its encoding, in the order of that text [n].
    """

    name: str
    train: Split | Growing = field(repr=False)
    validation: Split = field(repr=False)
    probe: Split = field(repr=False)
    vocab_size: int
    digest: str
    rare: IntArray = field(repr=False)
    artefacts: IntArray = field(repr=False)

    def validation_sequences(self, context: int, n: int) -> Indices:
        """`n` sequences spread evenly over the validation part, [n, context + 1] int64.

        Raises:
            UserError: there are fewer.
        """
        return _spread(self.validation, "validation", context, n)

    def probe_sequences(self, context: int, n: int) -> Indices:
        """`n` sequences spread evenly over the probe part, [n, context + 1] int64.

        Raises as `validation_sequences` does.
        """
        return _spread(self.probe, "probe", context, n)

    def __deepcopy__(self, memo: dict[int, Any]) -> Corpus:
        return self


def interleaved(tokens: IntArray, name: str) -> tuple[Split, Split, Split]:
    """Training, validation and probe: segments in a fixed pattern, 1 in 40 for validation and 1 in 80 for the probe.

    Raises:
        UserError: too few tokens.
    """
    if len(tokens) < FEWEST:
        raise UserError(
            f"expected at least {FEWEST} tokens in corpus {name}, found {len(tokens)}; give more text"
        )
    segments = PERIOD * min(PERIODS, max(1, len(tokens) // (PERIOD * LONG_ENOUGH)))
    bounds = [len(tokens) * place // segments for place in range(segments + 1)]
    apart = {"validation": VALIDATION, "probe": PROBE}
    runs: dict[str, list[Run]] = {"train": [], "validation": [], "probe": []}
    for place, run in enumerate(pairwise(bounds)):
        part = next((part for part, places in apart.items() if place % PERIOD in places), "train")
        before = runs[part]
        if before and before[-1][1] == run[0]:
            run = (before.pop()[0], run[1])
        before.append(run)
    train, validation, probe = (Split(tokens, tuple(part)) for part in runs.values())
    return train, validation, probe


def held_out(tokens: IntArray) -> tuple[Split, Split]:
    """A source's own validation split: the first two thirds are validation, the rest is the probe."""
    border = len(tokens) * 2 // 3
    return Split(tokens, ((0, border),)), Split(tokens, ((border, len(tokens)),))


def rarest(tokens: IntArray, vocab_size: int) -> IntArray:
    """The rarest 1/16 of the vocabulary (at least 4 tokens) in a sample of `tokens`, ascending; ties go to the smaller token."""
    counts = np.zeros(vocab_size, np.int64)
    block = 1 << 20
    for start in range(0, min(len(tokens), 16 * block), block):
        counts += np.bincount(tokens[start : start + block], minlength=vocab_size)
    return np.sort(np.argsort(counts, kind="stable")[: max(4, vocab_size // 16)])


def _spread(split: Split, part: str, context: int, n: int) -> Indices:
    starts = split.starts(context)
    if len(starts) < n:
        raise UserError(
            f"expected {n} {part} sequences of {context + 1} tokens, found {len(starts)} in {split.size} {part} tokens; "
            "ask for fewer, or give more text or a smaller context"
        )
    return split.cut(starts[(2 * np.arange(n) + 1) * len(starts) // (2 * max(1, n))], context + 1)
