"""Duplicates between the training and the test part: exact ones and near ones.

Two texts are exact duplicates if they are equal without case, spaces and punctuation. A text is a
near duplicate if it has enough of the word sequences (n-grams) of a test text, as in the checks of
Brown et al. 2020 (GPT-3), whose n is 13 words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

_WORD = re.compile(r"\w+|[^\w\s]")
_LETTERS = re.compile(r"\w+|[-+*/%<>=!?]")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Texts of the training part that repeat the test part.

    Attributes:
        exact: Indices of exact duplicates, ascending.
        near: Indices of near duplicates that are not exact ones, ascending.
    """

    exact: tuple[int, ...]
    near: tuple[int, ...]

    @property
    def found(self) -> frozenset[int]:
        """Indices of all duplicates."""
        return frozenset((*self.exact, *self.near))


@dataclass(frozen=True, kw_only=True)
class DuplicateFinder:
    """Finds texts that repeat others.

    Args:
        words: Words of an n-gram, at least 1. Texts with fewer words are only compared as a whole.
        share: Least share of a test text's n-grams, above 0 and at most 1, that a near duplicate
            has.
    """

    words: int = 13
    share: float = 0.5

    def overlap(self, train: Sequence[str], test: Iterable[str]) -> Overlap:
        """Find the texts of `train` that repeat a text of `test`.

        The time grows with the length of both together, not with their product.
        """
        known = list(dict.fromkeys(test))
        whole = {normalised(text) for text in known}
        owners: dict[int, list[int]] = {}
        sizes = []
        for place, text in enumerate(known):
            grams = self._grams(text)
            sizes.append(len(grams))
            for gram in grams:
                owners.setdefault(gram, []).append(place)
        exact = []
        near = []
        for place, text in enumerate(train):
            if normalised(text) in whole:
                exact.append(place)
                continue
            counts: dict[int, int] = {}
            for gram in self._grams(text):
                for owner in owners.get(gram, ()):
                    counts[owner] = counts.get(owner, 0) + 1
            if any(count >= self.share * sizes[owner] for owner, count in counts.items()):
                near.append(place)
        return Overlap(exact=tuple(exact), near=tuple(near))

    def _grams(self, text: str) -> set[int]:
        """Return the hashes of a text's n-grams."""
        words = _WORD.findall(text.lower())
        return {
            xxhash.xxh3_64_intdigest(" ".join(words[start : start + self.words]).encode())
            for start in range(len(words) - self.words + 1)
        }


def normalised(text: str) -> str:
    """Return a text in lower case, with one space between words and without punctuation.

    Signs of arithmetic stay: they make different tasks.
    """
    return " ".join(_LETTERS.findall(text.lower()))
