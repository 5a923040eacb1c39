"""WikiText-103 and C4 from local copies in their real formats, and what is said where they cannot be had."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from trainenv import data
from trainenv.config.schema import CorpusConfig
from trainenv.data import hub
from trainenv.types import UserError

Rows = Callable[..., list[str]]
datasets = pytest.importorskip("datasets")


def write_parquet(file: Path, rows: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table({"text": rows}), file)


@pytest.fixture
def parquet(tmp_path: Path, wikitext_rows: Rows) -> Path:
    """The hub's repository as downloaded: two configurations, two training files; an article runs from one into the other."""
    root, rows = tmp_path / "hub", wikitext_rows(60)
    folder = root / "wikitext-103-raw-v1"
    write_parquet(folder / "train-00000-of-00002.parquet", rows[:101])
    write_parquet(folder / "train-00001-of-00002.parquet", rows[101:])
    write_parquet(folder / "validation-00000-of-00001.parquet", wikitext_rows(30, 60))
    write_parquet(folder / "test-00000-of-00001.parquet", wikitext_rows(10, 90))
    write_parquet(root / "wikitext-2-raw-v1" / "train-00000-of-00001.parquet", ["never read"])
    return root


@pytest.fixture
def raw(tmp_path: Path, wikitext_rows: Rows) -> Path:
    """The raw files as first published: blank lines hold a space."""
    root = tmp_path / "wikitext-103-raw"
    root.mkdir()
    for name, rows in (
        ("train", wikitext_rows(60)),
        ("valid", wikitext_rows(30, 60)),
        ("test", ["no"]),
    ):
        (root / f"wiki.{name}.raw").write_text(
            "".join(row or " \n" for row in rows), encoding="utf-8"
        )
    return root


@pytest.fixture
def saved(tmp_path: Path, wikitext_rows: Rows) -> Path:
    root = tmp_path / "saved"
    splits = {"train": wikitext_rows(60), "validation": wikitext_rows(30, 60)}
    whole = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    )
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    whole.save_to_disk(str(root))
    if not bars:
        datasets.enable_progress_bars()
    return root


def test_wikitext_is_the_same_from_every_kind_of_copy(
    parquet: Path, raw: Path, saved: Path
) -> None:
    loaded = [
        data.load(CorpusConfig(name="wikitext-103", path=path)) for path in (parquet, raw, saved)
    ]
    assert len({corpus.digest for corpus in loaded}) == 1
    assert (loaded[0].train.tokens == loaded[1].train.tokens).all()  # type: ignore[union-attr]


def test_wikitext_documents_are_articles(parquet: Path) -> None:
    source = hub.wikitext(parquet)
    articles = [article.decode() for article in source.train]
    assert len(articles) == 60
    assert (
        articles[1]
        == " = Ætna = \n Ætna — 1 – naïve 日本語 . \n = = Section = = \n More of it . \n"
    )
    assert source.validation is not None
    assert len(list(source.validation)) == 30


def test_wikitext_held_out_parts_are_of_its_own_validation_text(parquet: Path) -> None:
    corpus = data.load(CorpusConfig(name="wikitext-103", path=parquet))
    assert isinstance(corpus.train, data.Split)
    assert b"@-@ 58" in corpus.train.tokens.tobytes()
    assert b"@-@ 60" not in corpus.train.tokens.tobytes()
    ((_, first),) = corpus.validation.runs
    ((second, third),) = corpus.test.runs
    assert (first, third) == (second, corpus.probe.runs[0][0])
    assert b"@-@ 60" in corpus.validation.cut(np.zeros(1, np.int64), 200).astype("u1").tobytes()


def test_one_file_is_split_here(raw: Path) -> None:
    corpus = data.load(CorpusConfig(name="wikitext-103", path=raw / "wiki.train.raw"))
    assert len(corpus.validation.runs) == len(corpus.test.runs) == 1


def test_c4_streams_from_a_copy(c4_copy: Path) -> None:
    corpus = data.load(CorpusConfig(name="c4", path=c4_copy))
    assert isinstance(corpus.train, data.TokenStream)
    first = next(iter(hub.c4(c4_copy).train))
    length = len(first) + 2
    assert corpus.train.grow(length) == length
    assert corpus.train.cut(np.zeros(1, np.int64), length).astype("u1").tobytes() == first + b"\n\n"
    assert corpus.validation_sequences(64, 8).shape == (8, 65)


def test_c4_needs_a_validation_split(c4_copy: Path) -> None:
    next((c4_copy / "en").glob("c4-validation*")).unlink()
    with pytest.raises(
        UserError,
        match=r"expected a validation split of C4 .*; put c4-validation.00000-of-00008.json.gz next to them",
    ):
        data.load(CorpusConfig(name="c4", path=c4_copy))


@pytest.mark.parametrize("name", ["wikitext-103", "c4"])
def test_without_a_network_a_local_copy_is_the_remedy(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach it on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    expected = r"from the Hugging Face hub, found ConnectionError: Couldn't reach it .*; connect .*, or set corpus.path to a local copy"
    with pytest.raises(UserError, match=expected):
        data.load(CorpusConfig(name=name))


@pytest.mark.parametrize("name", ["wikitext-103", "c4"])
def test_without_the_package_its_extra_is_the_remedy(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'trainenv\[hub\]'"):
        data.load(CorpusConfig(name=name))


def test_the_hub_is_asked_for_the_right_things(
    monkeypatch: pytest.MonkeyPatch, wikitext_rows: Rows
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(
        path: str,
        name: str | None = None,
        *,
        split: str,
        data_files: Any = None,
        streaming: bool = False,
    ) -> Any:
        asked.append((path, name, split, data_files, streaming))
        rows = wikitext_rows(400)
        return (
            [{"text": row} for row in rows]
            if streaming
            else datasets.Dataset.from_dict({"text": rows})
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data.load(CorpusConfig(name="wikitext-103"))
    assert asked == [
        ("Salesforce/wikitext", "wikitext-103-raw-v1", split, None, False)
        for split in ("train", "validation")
    ]
    asked.clear()
    data.load(CorpusConfig(name="c4"))
    assert asked[0] == (
        "allenai/c4",
        None,
        "train",
        {"train": "en/c4-validation.00000-of-00008.json.gz"},
        True,
    )
    assert asked[-1] == (
        "allenai/c4",
        None,
        "train",
        {"train": "en/c4-train.00000-of-01024.json.gz"},
        True,
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda p: None,
            "expected a local copy at corpus.path .*, found nothing; give a path that exists",
        ),
        (
            lambda p: p.mkdir(),
            "expected training files named like train-00000-of-00001.parquet, .*, found an empty folder",
        ),
        (
            lambda p: p.mkdir() or (p / "notes.csv").touch(),
            "found notes.csv; rename the files like that",
        ),
        (
            lambda p: p.mkdir() or (p / "train.parquet").write_bytes(b"PAR1 torn"),
            "expected .*train.parquet to be whole and readable",
        ),
        (
            lambda p: p.mkdir() or (p / "train.jsonl").write_text('{"body": 1}\n'),
            "expected a column `text` in .*, found body; rename",
        ),
        (
            lambda p: p.mkdir() or (p / "train.json").write_text("[1]\n[2]\n"),
            "expected a column `text` in .*, found none",
        ),
        (
            lambda p: p.mkdir() or (p / "train.txt").write_bytes(b"\xff\n"),
            "expected .*train.txt to be whole and readable, .*utf-8",
        ),
        (
            lambda p: p.mkdir() or (p / "state.json").write_text("{}"),
            "expected a folder written by save_to_disk at",
        ),
    ],
)
def test_what_is_wrong_with_a_copy_is_said(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "copy")
    with pytest.raises(UserError, match=message):
        data.load(CorpusConfig(name="wikitext-103", path=tmp_path / "copy"))


def test_a_shard_torn_in_the_middle_is_named(c4_copy: Path) -> None:
    shard = c4_copy / "en" / "c4-train.00001-of-01024.json.gz"
    shard.write_bytes(shard.read_bytes()[:-200])
    corpus = data.load(CorpusConfig(name="c4", path=c4_copy))
    with pytest.raises(
        UserError,
        match=r"c4-train.00001-of-01024.json.gz to be whole and readable, .*; copy it again",
    ):
        data.CorpusBatches(corpus, context=64, batch_size=4)(10_000)


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "train.json.gz"
    with gzip.open(file, "wt") as lines:
        lines.write(json.dumps({"text": "a\ud800b"}) + "\n")
    assert list(hub._local_copy(file, "")[0]) == [b"a?b"]


def test_importing_corpora_imports_no_library_of_the_hub() -> None:
    late = ("datasets", "transformers", "tokenizers", "pyarrow")
    code = f"import sys, trainenv.data; print([name for name in {late} if name in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert out.stdout.strip() == "[]"
