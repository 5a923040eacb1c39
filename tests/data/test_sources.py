"""Text from the standard library and from files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainenv import data as corpora
from trainenv.config.schema import CorpusConfig
from trainenv.data.documents import Documents, Survey, standard_library, text_files
from trainenv.types import UserError


def test_the_standard_library_is_sorted_whole_and_without_tests() -> None:
    names = standard_library().train.shards
    assert list(names) == sorted(names)
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    forbidden = re.compile(r"(^|/)(site-packages|tests?|idlelib|lib2to3|turtledemo|__pycache__)/")
    assert not [name for name in names if forbidden.search(name) or not name.endswith(".py")]


def test_the_embedded_corpus_loads() -> None:
    corpus = corpora.load(CorpusConfig())
    assert corpus.vocab_size == 256
    assert 5e6 < corpus.train.size + corpus.validation.size + corpus.probe.size < 3e7  # type: ignore[union-attr]
    assert corpora.load(CorpusConfig()) is corpus


def test_a_folder_is_read_in_order_without_hidden_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    files = {
        "b/1.md": b"second",
        "a.txt": b"first",
        "z.png": b"\x89PNG\0\0",
        ".hidden": b"no",
        ".git/config": b"no",
        "c": b"third",
        "d": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    source = text_files(tmp_path)
    assert source.train.shards == ("a.txt", "b/1.md", "c", "d")
    assert list(source.train) == [b"first", b"second", b"third"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: None,
            "expected a text file or a folder at corpus.path .*, found neither; give a path that exists",
        ),
        (
            lambda p: p.write_bytes(b""),
            r"expected text at corpus.path .*, found 1 file\(s\) and no text in them",
        ),
        (lambda p: p.mkdir(), r"found 0 file\(s\) and no text in them; give one with text"),
        (
            lambda p: p.write_bytes(b"caf\xe9 noir"),
            "expected UTF-8 text in .*, found byte 0xe9 at position 3; convert the file",
        ),
        (
            lambda p: p.mkdir() or (p / "a").write_text("text", encoding="utf-16"),
            "expected UTF-8 text in .*a, found byte 0xff",
        ),
        (
            lambda p: p.write_bytes(b"too short"),
            "expected at least 640 tokens in corpus text, found 11; give more text",
        ),
    ],
)
def test_what_is_wrong_with_a_path_is_said(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / "corpus")
    with pytest.raises(UserError, match=message):
        corpora.load(CorpusConfig(name="text", path=tmp_path / "corpus"))


def test_a_relative_path_is_of_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corpora are kept in memory: the same path from elsewhere is another text."""
    digests = []
    for name in ("a", "b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "x.txt").write_text(name * 5000, encoding="utf-8")
        monkeypatch.chdir(tmp_path / name)
        digests.append(corpora.load(CorpusConfig(name="text", path=Path("x.txt"))).digest)
    assert digests[0] == digests[2] != digests[1]


def test_text_needs_a_path() -> None:
    with pytest.raises(UserError, match=r"needs corpus.path, found none; set it to"):
        corpora.load(CorpusConfig(name="text"))


def test_the_digest_is_of_content_not_of_place(tmp_path: Path, text: Path) -> None:
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(text.read_bytes())
    other = tmp_path / "other.txt"
    other.write_bytes(text.read_bytes() + b".")
    digests = [
        corpora.load(CorpusConfig(name="text", path=path)).digest for path in (text, copy, other)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert corpora.load(CorpusConfig(name="text", path=text, max_tokens=9000)).digest != digests[0]


def test_a_survey_sees_where_documents_end() -> None:
    def of(*documents: bytes) -> str:
        return Survey.of(iter(Documents(("x",), lambda shard: iter(documents)))).digest

    assert of(b"ab", b"c") != of(b"a", b"bc")
    assert of(b"ab", b"c") == of(b"ab", b"c")
