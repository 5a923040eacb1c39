"""Corpora of trunks, made on every machine without a download: code, prose, artificial words."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainenv.tools.atomic_files import write_file
from trainenv.types import UserError

CORPORA = ("stdlib", "topics", "words")
_WORDS = 600
_FOLLOWERS = 12
_SENTENCES = 12_000

Texts = Mapping[str, Mapping[str, Any]]
"""Configuration of each corpus, the part `corpus` of a run's configuration, by name."""


def write_texts(folder: Path) -> Texts:
    """Write the corpora that are no files yet into `folder`; existing files stay as they are.

    Raises:
        UserError: The standard library has no documentation of topics.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], str]] = {"topics": _topics, "words": _words}
    texts: dict[str, Mapping[str, Any]] = {"stdlib": {"name": "stdlib"}}
    for name, make in makers.items():
        path = folder / f"{name}.txt"
        if not path.is_file():
            write_file(path, make())
        texts[name] = {"name": "text", "path": str(path)}
    return texts


def _topics() -> str:
    """Return the prose of Python's language reference, 0.7 MB, as `help("…")` shows it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "expected Python's module pydoc_data.topics, found none; install the whole standard "
            "library"
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def _words() -> str:
    """Return text in an artificial language, 0.8 MB.

    Each of its 600 words is followed by one of 12 words, with probabilities ∝ 1, 1/2, … 1/12.
    """
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = sorted(
        {"".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(2 * _WORDS)}
    )
    draw.shuffle(words)
    words = words[:_WORDS]
    followers = [draw.sample(range(_WORDS), _FOLLOWERS) for _ in words]
    weights = [1 / (place + 1) for place in range(_FOLLOWERS)]
    lines = []
    word = 0
    for _ in range(_SENTENCES):
        sentence = []
        for _ in range(draw.randint(4, 16)):
            word = draw.choices(followers[word], weights)[0]
            sentence.append(words[word])
        lines.append(" ".join(sentence) + ".")
    return "\n".join(lines) + "\n"
