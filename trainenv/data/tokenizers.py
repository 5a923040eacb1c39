"""Tokenizers: bytes, and any byte-level tokenizer of the package `tokenizers`.

`bpe` trains one, `gpt2_tokens` loads GPT-2's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from trainenv.types import UserError

IntArray = npt.NDArray[np.integer[Any]]
T = TypeVar("T")
END_OF_TEXT = "<|endoftext|>"
_ROUND_TRIP = "def f(x):\n\treturn x  # naïve – 日本語 🙂\n"


class Tokenizer(Protocol):
    """Contract of a tokenizer; two tokenizers with the same `digest` make the same tokens."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def separator(self) -> IntArray:
        """The tokens that follow each document."""
        ...

    def encode(self, documents: Sequence[bytes]) -> list[IntArray]:
        """Return the tokens of each document, without separators, in `dtype(vocab_size)`."""
        ...

    def decode(self, tokens: IntArray) -> str:
        """Return the text of tokens; bytes that are not UTF-8 become U+FFFD."""
        ...


def interruptible(work: Callable[[], T]) -> T:
    """Return the result of `work`, so that Ctrl-C can end the wait.

    Python handles no signal while compiled code runs. The work is therefore done in a thread, which
    continues after Ctrl-C until it is done or the process ends.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # with a limit: the system may give the signal to another thread
    if errors:
        raise errors[0]
    return results[0]


def dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest unsigned type that holds every token."""
    return np.min_scalar_type(vocab_size - 1)


@dataclass(frozen=True)
class Bytes:
    """A tokenizer with one token a byte.

    Two line feeds follow each document: 256 tokens leave no room for a separator token.
    """

    vocab_size: int = 256
    digest: str = "bytes"

    @property
    def separator(self) -> IntArray:
        return np.frombuffer(b"\n\n", np.uint8)

    def encode(self, documents: Sequence[bytes]) -> list[IntArray]:
        return [np.frombuffer(document, np.uint8) for document in documents]

    def decode(self, tokens: IntArray) -> str:
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")


@dataclass(frozen=True, eq=False)
class Subwords:
    """A byte-level tokenizer of the package `tokenizers`.

    Its `<|endoftext|>` follows each document.

    Args:
        text: The tokenizer as JSON.
        source: Name of the file or folder that it came from, for errors.

    Raises:
        UserError: The text is not a tokenizer, or the tokenizer can't represent every text.
    """

    text: str = field(repr=False)
    source: str
    vocab_size: int = field(init=False)
    digest: str = field(init=False, repr=False)
    separator: IntArray = field(init=False, repr=False)
    _rust: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from tokenizers import Tokenizer as Rust

        try:
            rust = Rust.from_str(self.text)
        except Exception as error:  # the package raises bare Exception
            raise UserError(
                f"expected a tokenizer.json at {self.source}, found something else ({error}); "
                "save it again"
            ) from None
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = True  # `<|endoftext|>` in a text is text, not a separator
        vocabulary = rust.get_vocab(with_added_tokens=True)
        if END_OF_TEXT not in vocabulary:
            raise UserError(
                f"expected a token {END_OF_TEXT} in the tokenizer at {self.source}, found none; "
                "add it as a special token"
            )
        size = max(vocabulary.values()) + 1  # ids may have gaps
        made = {
            "vocab_size": size,
            "digest": xxhash.xxh3_128_hexdigest(self.text.encode()),
            "separator": np.array([vocabulary[END_OF_TEXT]], dtype(size)),
            "_rust": rust,
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)
        if self.decode(self.encode([_ROUND_TRIP.encode()])[0]) != _ROUND_TRIP:
            raise UserError(
                f"expected a byte-level tokenizer like GPT-2's at {self.source}, found one that "
                "does not give back the text; use one with a ByteLevel pre-tokenizer and decoder, "
                "or corpus.tokenizer: bpe"
            )

    def encode(self, documents: Sequence[bytes]) -> list[IntArray]:
        texts = [document.decode(errors="replace") for document in documents]
        encoded = interruptible(
            lambda: self._rust.encode_batch_fast(texts, add_special_tokens=False)
        )
        return [np.array(encoding.ids, dtype(self.vocab_size)) for encoding in encoded]

    def decode(self, tokens: IntArray) -> str:
        return str(self._rust.decode(tokens.tolist(), skip_special_tokens=False))

    def __reduce__(self) -> tuple[type[Subwords], tuple[str, str]]:
        return Subwords, (self.text, self.source)
