"""Texts that need no download, and texts of the hub, as documents to train on and cut prompts from.

Every tenth document is held out: models are trained on the others, and prompts are cut from it.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from trainenv.data import hub
from trainenv.data.documents import standard_library, text_files
from trainenv.types import UserError

HELD_OUT = 10
"""One of so many documents is held out."""
_LIBRARY = 3 << 20  # bytes of the standard library that are read
_PROBLEMS = 2500  # documents of arithmetic
_SHORTEST = 200  # bytes of the shortest document of prose
_STREAMED = 2000  # documents that are read of a corpus of the hub


def documents(source: str, path: Path | None = None) -> list[bytes]:
    """Return the documents of a source, UTF-8, in a fixed order.

    Args:
        source: `library`, `prose`, `arithmetic`, `text`, `wikitext-103`, `c4` or `lambada`.
        path: Text file or folder of `text`; local copy of a corpus of the hub.

    Raises:
        UserError: The text can't be read, or there are too few documents.
    """
    found = list(_READERS[source](path))
    if len(found) < HELD_OUT:
        raise UserError(
            f"expected at least {HELD_OUT} documents of {source}, found {len(found)}; give a "
            "longer text, with an empty line between documents"
        )
    return found


def split(found: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Split documents into those to train on and those held out."""
    train = [document for place, document in enumerate(found) if place % HELD_OUT]
    return train, found[::HELD_OUT]


def _library(path: Path | None) -> Iterator[bytes]:
    size = 0
    for document in standard_library().train:
        size += len(document)
        if size > _LIBRARY:
            return
        yield document


def _prose(path: Path | None) -> Iterator[bytes]:
    """Yield the documentation of each module of the standard library that has some."""
    for document in standard_library().train:
        try:
            module = ast.parse(document)
        except (SyntaxError, ValueError):  # a module for another version of Python
            continue
        nodes = [
            node
            for node in ast.walk(module)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        texts = [text for node in nodes if (text := ast.get_docstring(node))]
        joined = "\n\n".join(texts).encode(errors="replace")
        if len(joined) >= _SHORTEST:
            yield joined


def _arithmetic(path: Path | None) -> Iterator[bytes]:
    """Yield pages of sums and products with their results, the same on every machine."""
    generator = random.Random(0)
    for _ in range(_PROBLEMS):
        lines = []
        for _ in range(16):
            a = generator.randrange(100)
            b = generator.randrange(100)
            kind = generator.randrange(4)
            if kind == 0:
                lines.append(f"{a} + {b} = {a + b}")
            elif kind == 1:
                lines.append(f"{a} - {b} = {a - b}")
            elif kind == 2:
                lines.append(f"{a % 12} * {b % 12} = {(a % 12) * (b % 12)}")
            else:
                lines.append(f"max({a}, {b}) = {max(a, b)} and min({a}, {b}) = {min(a, b)}")
        yield "\n".join(lines).encode()


def _text(path: Path | None) -> Iterator[bytes]:
    """Yield the paragraphs of text files, which empty lines separate."""
    for document in text_files(path).train:
        yield from (part for part in document.split(b"\n\n") if part.strip())


def _wikitext(path: Path | None) -> Iterator[bytes]:
    return islice(iter(hub.wikitext(path).train), _STREAMED)


def _c4(path: Path | None) -> Iterator[bytes]:
    return islice(iter(hub.c4(path).train), _STREAMED)


def _lambada(path: Path | None) -> Iterator[bytes]:
    return islice(iter(hub.lambada(path)), _STREAMED)


_READERS: dict[str, Callable[[Path | None], Iterator[bytes]]] = {
    "library": _library,
    "prose": _prose,
    "arithmetic": _arithmetic,
    "text": _text,
    "wikitext-103": _wikitext,
    "c4": _c4,
    "lambada": _lambada,
}
