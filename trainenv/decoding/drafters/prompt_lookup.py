"""Prompt lookup: the draft copies what followed the same n-gram earlier in the text.

It has no model and costs nearly nothing. It serves where the output repeats the input: summaries,
edits of code, answers with quotations. (The idea is that of `prompt_lookup_num_tokens` in
transformers; Saxena 2023.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainenv.decoding.contract import Draft, DraftRequest
from trainenv.tools.checks import whole
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class PromptLookup:
    """Drafts copied from the latest earlier place with the same last tokens.

    Args:
        longest: Number of last tokens looked for first, at least 1.
        shortest: Number of last tokens looked for last, from 1 to `longest`.

    Raises:
        UserError: A number is out of range.
    """

    longest: int = 3
    shortest: int = 1

    def __post_init__(self) -> None:
        whole("longest", self.longest, least=1)
        whole("shortest", self.shortest, least=1)
        if self.shortest > self.longest:
            raise UserError(
                f"shortest must be at most longest ({self.longest}), found {self.shortest}; "
                "raise longest or lower shortest"
            )

    @property
    def needs_states(self) -> bool:
        """False: tokens are all it needs."""
        return False

    def check(self, vocabulary: int, tokenizer: object | None, /) -> None:
        """Accept every target: the tokens are its own."""

    def open(self, vocabulary: int, /) -> LookupSession:
        """Return a session with an empty index."""
        return LookupSession(self)


class LookupSession:
    """Index of the n-grams of each row.

    Args:
        settings: Lengths of the n-grams.
    """

    def __init__(self, settings: PromptLookup) -> None:
        self._lengths = range(settings.longest, settings.shortest - 1, -1)
        self._indexes: dict[int, dict[tuple[int, ...], int]] = {}
        self._indexed: dict[int, int] = {}

    def propose(self, request: DraftRequest, /) -> Draft:
        """Copy up to `limits` tokens of each row."""
        found = [
            self._continuation(row_id, row, unchanged, limit)
            for row_id, row, unchanged, limit in zip(
                request.row_ids, request.rows, request.unchanged, request.limits, strict=True
            )
        ]
        width = max(map(len, found))
        return Draft(
            tokens=torch.tensor(
                [[*tokens, *[0] * (width - len(tokens))] for tokens in found], dtype=torch.int64
            ),
            counts=tuple(map(len, found)),
        )

    def _continuation(self, row_id: int, row: list[int], unchanged: int, limit: int) -> list[int]:
        index = self._indexes.setdefault(row_id, {})
        if self._indexed.get(row_id, 0) > unchanged:  # tokens drafted ahead and then rejected
            index.clear()
            self._indexed[row_id] = 0
        # The last token has no continuation yet, so n-grams that end there are left out.
        for end in range(max(1, self._indexed.get(row_id, 0)), len(row)):
            for length in self._lengths:
                if length <= end:
                    index[tuple(row[end - length : end])] = end
        self._indexed[row_id] = len(row)
        if limit == 0:
            return []
        for length in self._lengths:
            last = tuple(row[-length:])  # shorter where the row is: a shorter n-gram
            if last in index:
                start = index[last]
                return row[start : start + limit]
        return []
