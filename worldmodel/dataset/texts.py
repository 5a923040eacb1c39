"""The corpora that trunks train on: real code, real prose and an artificial language, on every machine without a download."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainenv.types import UserError

CORPORA = ("stdlib", "topics", "words")
_WORDS = 600
_FOLLOWERS = 12
_SENTENCES = 12_000

Texts = Mapping[str, Mapping[str, Any]]
"""A corpus of ours → what the run's configuration says of it under `corpus`."""


def write_texts(folder: Path) -> Texts:
    """Write what is not on the machine as a file into `folder`; one that is there is left as it is.

    Raises:
        UserError: Python's documentation of its own topics is missing.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], str]] = {"topics": _topics, "words": _words}
    texts: dict[str, Mapping[str, Any]] = {"stdlib": {"name": "stdlib"}}
    for name, make in makers.items():
        path = folder / f"{name}.txt"
        if not path.is_file():
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_text(make(), encoding="utf-8", newline="\n")
            temporary.replace(path)
        texts[name] = {"name": "text", "path": str(path)}
    return texts


def _topics() -> str:
    """The prose of Python's language reference, 0.7 MB: what `help("…")` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "expected Python's module pydoc_data.topics, found none; install the whole standard library"
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def _words() -> str:
    """A made-up language, 0.8 MB: each of its 600 words is followed by one of 12, the first of them most often."""
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
