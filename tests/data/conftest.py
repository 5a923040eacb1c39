"""A small corpus, copies of hub corpora in their real formats, and a cache of one's own for every test."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from trainenv import data
from trainenv.config.schema import CorpusConfig

ARTICLES = [
    [
        " = Homarus gammarus = \n",
        " Homarus gammarus , the European lobster @-@ {n} , is a species of lobster . \n",
    ],
    [" = Ætna = \n", " Ætna — {n} – naïve 日本語 . \n", " = = Section = = \n", " More of it . \n"],
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test has its cache, and no corpus in memory."""
    monkeypatch.setenv("TRAINENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data._load.cache_clear()
    yield tmp_path / "cache"
    data._load.cache_clear()


def prose(words: int, seed: int = 0) -> str:
    """Text with the statistics of none, but never the same for long."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    return " ".join(f"w{number}" for number in rng.integers(0, 5000, words))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of about 35 kB."""
    file = tmp_path / "text.txt"
    file.write_text(prose(6000), encoding="utf-8")
    return file


@pytest.fixture
def corpus(text: Path) -> data.Corpus:
    return data.load(CorpusConfig(name="text", path=text))


@pytest.fixture
def wikitext_rows() -> Callable[[int, int], list[str]]:
    """Rows as the hub has them: a line each, blank ones empty."""

    def rows(articles: int, first: int = 0) -> list[str]:
        lines = [""]
        for n in range(first, first + articles):
            for line in ARTICLES[n % 2]:
                lines += [line.format(n=n), ""]
        return lines

    return rows


@pytest.fixture
def c4_copy(tmp_path: Path) -> Path:
    """A copy of C4: two training shards and one for validation, of 60 pages each."""
    root = tmp_path / "c4" / "en"
    root.mkdir(parents=True)
    names = ("c4-train.00000-of-01024", "c4-train.00001-of-01024", "c4-validation.00000-of-00008")
    for seed, name in enumerate(names):
        write_c4(
            root / f"{name}.json.gz",
            [prose(40 + page, seed=1000 * seed + page) for page in range(60)],
        )
    return root.parent


def write_c4(file: Path, pages: list[str]) -> None:
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        for place, page in enumerate(pages):
            row = {
                "text": page,
                "timestamp": "2019-04-25T12:57:54Z",
                "url": f"https://example.org/{place}",
            }
            lines.write(json.dumps(row) + "\n")
