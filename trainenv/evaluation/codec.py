"""Text and tokens: one face for our tokenizers and for those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainenv.data.tasks.sample_corpus import end_token
from trainenv.data.tokenizers import dtype
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Conversion between text and tokens.

    Attributes:
        encode: Function from a text to its tokens.
        decode: Function from tokens to their text.
        ends: Tokens that end a text.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> Codec:
        """Return the codec of a tokenizer: a `Codec`, one of ours, or one of transformers.

        Raises:
            UserError: It is neither.
        """
        if isinstance(tokenizer, Codec):
            return tokenizer
        if hasattr(tokenizer, "separator"):
            return _of_ours(tokenizer)
        if hasattr(tokenizer, "eos_token_id"):
            return _of_transformers(tokenizer)
        raise UserError(
            "expected a tokenizer of trainenv.data or of transformers, found "
            f"{type(tokenizer).__name__}; pass one of these, or a Codec"
        )


def _of_ours(tokenizer: Any) -> Codec:
    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer.encode([text.encode(errors="replace")])[0].tolist()
        return found

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(np.array(tokens, dtype(tokenizer.vocab_size))))

    return Codec(encode=encode, decode=decode, ends=frozenset([end_token(tokenizer)]))


def _of_transformers(tokenizer: Any) -> Codec:
    def encode(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    ends = tokenizer.eos_token_id
    if ends is None:
        ends = []
    if isinstance(ends, int):
        ends = [ends]
    return Codec(encode=encode, decode=decode, ends=frozenset(ends))
