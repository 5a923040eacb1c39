"""A corpus: tokens, their fixed split, and the sequences that are cut from them."""

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

PERIOD = 80  # segments after which the pattern of the split repeats
# Indices of the held-out segments in a period.
VALIDATION = (19,)
PROBE = (39,)
TEST = (59,)
PERIODS = 8  # most periods of a text
LONG_ENOUGH = 16384  # tokens of a segment in which long sequences fit; fewer periods if shorter
FEWEST = 8 * PERIOD  # tokens of the shortest text that can be split


class Growing(Protocol):
    """Tokens that are made on demand; see `token_stream.TokenStream`."""

    def grow(self, stop: int) -> int:
        """Make the first `stop` tokens; return their number, lower if the stream ends before."""
        ...

    def cut(self, starts: Indices, length: int) -> Indices: ...

    @property
    def limit(self) -> int | None: ...


@dataclass(frozen=True, eq=False)
class Split:
    """A part of a token array, made of runs of contiguous tokens.

    Sequences never cross the border of a run.

    Attributes:
        tokens: The whole array.
        runs: Start and stop index of each run.
    """

    tokens: IntArray = field(repr=False)
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """The number of tokens in the part."""
        return sum(stop - start for start, stop in self.runs)

    def starts(self, context: int) -> Indices:
        """Return the start indices [n] of all sequences of `context` inputs and one more target.

        A sequence starts at the last target of the one before.
        """
        parts = [
            np.arange(start, stop - context, context, dtype=np.int64) for start, stop in self.runs
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def pulled_in(self, starts: Indices, length: int) -> Indices:
        """Move `starts` back so far that `length` tokens fit into their run.

        Starts in a run that is too short move to the longest run.

        Raises:
            UserError: No run is long enough.
        """
        first, last = np.array(self.runs, np.int64).T  # (runs,), (runs,)
        longest = int(np.argmax(last - first))
        if last[longest] - first[longest] < length:
            raise UserError(
                f"expected {length} contiguous training tokens for a long sequence, found at most "
                f"{(last - first).max()}; give more text or a smaller context or "
                "stressors.long_factor"
            )
        run = np.searchsorted(first, starts, side="right") - 1
        run = np.where(last[run] - first[run] < length, longest, run)
        return np.clip(starts, first[run], last[run] - length)

    def cut(self, starts: Indices, length: int) -> Indices:
        """Return `length` tokens from each start [n, length], int64."""
        tokens = self.tokens
        item = self.tokens.itemsize
        # The rows overlap in the same memory, so that one indexing operation copies all sequences.
        rows: IntArray = np.ndarray(
            (len(tokens) - length + 1, length), tokens.dtype, tokens, 0, (item, item)
        )
        return rows[starts].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens; it is immutable, and copies share the tokens.

    No token is in two of the four parts. All but the training part are the same for every seed.
    Methods may look at validation and probe as often as they pay for it. The test part is for the
    final measurement alone: no method ever sees it.

    Args:
        name: Name in the configuration.
        train: Part that batches are made from; a stream's tokens are made on demand.
        validation: Held-out part for the validation loss.
        probe: Held-out part for the clean probe.
        test: Held-out part for the test loss.
        vocab_size: Number of tokens: one more than the greatest.
        digest: Hash of tokenizer and content, the same on every machine that has the same text.
        rare: Rarest tokens of the vocabulary, ascending [n]; some may not occur at all.
        artefacts: Tokens of a badly encoded text, in its order [n].
    """

    name: str
    train: Split | Growing = field(repr=False)
    validation: Split = field(repr=False)
    probe: Split = field(repr=False)
    test: Split = field(repr=False)
    vocab_size: int
    digest: str
    rare: IntArray = field(repr=False)
    artefacts: IntArray = field(repr=False)

    def validation_sequences(self, context: int, n: int) -> Indices:
        """Return `n` sequences [n, context + 1], int64, spread evenly over the validation part.

        Raises:
            UserError: There are fewer than `n`.
        """
        return _spread(self.validation, "validation", context, n)

    def all_validation_sequences(self, context: int) -> Indices:
        """Return all sequences [n, context + 1], int64, of the validation part, in its order."""
        return self.validation.cut(self.validation.starts(context), context + 1)

    def probe_sequences(self, context: int, n: int) -> Indices:
        """Return `n` sequences [n, context + 1], int64, spread evenly over the probe part.

        Raises:
            UserError: There are fewer than `n`.
        """
        return _spread(self.probe, "probe", context, n)

    def test_sequences(self, context: int, n: int) -> Indices:
        """Return `n` sequences [n, context + 1], int64, spread evenly over the test part.

        All of them are returned if there are fewer than `n`.

        Raises:
            UserError: There is none.
        """
        there = len(self.test.starts(context))
        return _spread(self.test, "test", context, min(n, max(1, there)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Corpus:
        return self


def interleaved(tokens: IntArray, name: str) -> tuple[Split, Split, Split, Split]:
    """Split tokens into training, validation, probe and test by a fixed pattern of segments.

    Of 80 segments, one is for validation, one for the probe and one for the test.

    Raises:
        UserError: There are too few tokens.
    """
    if len(tokens) < FEWEST:
        raise UserError(
            f"expected at least {FEWEST} tokens in corpus {name}, found {len(tokens)}; "
            "give more text"
        )
    segments = PERIOD * min(PERIODS, max(1, len(tokens) // (PERIOD * LONG_ENOUGH)))
    bounds = [len(tokens) * place // segments for place in range(segments + 1)]
    apart = {"validation": VALIDATION, "probe": PROBE, "test": TEST}
    runs: dict[str, list[Run]] = {"train": [], "validation": [], "probe": [], "test": []}
    for place, run in enumerate(pairwise(bounds)):
        part = next((part for part, places in apart.items() if place % PERIOD in places), "train")
        before = runs[part]
        if before and before[-1][1] == run[0]:
            run = (before.pop()[0], run[1])
        before.append(run)
    train, validation, probe, test = (Split(tokens, tuple(part)) for part in runs.values())
    return train, validation, probe, test


def held_out(tokens: IntArray) -> tuple[Split, Split, Split]:
    """Split a source's own held-out tokens into validation, probe and test, a third each.

    In the text, they are in the order validation, test, probe.
    """
    bounds = [len(tokens) * third // 3 for third in range(4)]
    validation, test, probe = (Split(tokens, (run,)) for run in pairwise(bounds))
    return validation, probe, test


def rarest(tokens: IntArray, vocab_size: int) -> IntArray:
    """Return the rarest 1/16 of the vocabulary, at least 4 tokens, ascending.

    Tokens are counted in a sample. Among equally rare ones, smaller tokens come first.
    """
    counts = np.zeros(vocab_size, np.int64)
    block = 1 << 20
    for start in range(0, min(len(tokens), 16 * block), block):
        counts += np.bincount(tokens[start : start + block], minlength=vocab_size)
    return np.sort(np.argsort(counts, kind="stable")[: max(4, vocab_size // 16)])


def _spread(split: Split, part: str, context: int, n: int) -> Indices:
    starts = split.starts(context)
    if len(starts) < n:
        raise UserError(
            f"expected {n} {part} sequences of {context + 1} tokens, found {len(starts)} in "
            f"{split.size} {part} tokens; ask for fewer, or give more text or a smaller context"
        )
    return split.cut(starts[(2 * np.arange(n) + 1) * len(starts) // (2 * max(1, n))], context + 1)
