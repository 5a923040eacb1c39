"""Bytes, BPE and GPT-2's tokenizer."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv import data
from trainenv.config.schema import CorpusConfig
from trainenv.data import bpe, gpt2_tokens
from trainenv.data.documents import Documents
from trainenv.data.tokenizers import Bytes, Subwords, Tokenizer, dtype
from trainenv.types import UserError

WORDS = "the quick brown fox jumps over the lazy dog while naïve 日本語 speakers write def f(x): return x\n"


def documents(*texts: str) -> Documents:
    return Documents(("x",), lambda shard: iter([text.encode() for text in texts]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Subwords:
    return bpe.train(documents(WORDS * 20), 300, tmp_path_factory.mktemp("bpe"))


@given(text=st.text())
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back(trained: Subwords, text: str) -> None:
    kinds: tuple[Tokenizer, ...] = (Bytes(), trained)
    for tokenizer in kinds:
        tokens = tokenizer.encode([text.encode()])[0]
        assert tokens.dtype == dtype(tokenizer.vocab_size)
        assert not len(tokens) or tokens.max() < tokenizer.vocab_size
        assert tokenizer.decode(tokens) == text


def test_the_smallest_type_holds_the_vocabulary() -> None:
    assert [dtype(size).name for size in (256, 257, 65536, 65537)] == [
        "uint8",
        "uint16",
        "uint16",
        "uint32",
    ]


def test_a_mark_spelled_out_is_text(trained: Subwords) -> None:
    assert trained.separator[0] not in trained.encode([b"say <|endoftext|> twice"])[0]


def test_training_is_deterministic_and_cached(tmp_path: Path) -> None:
    one, two = (bpe.train(documents(WORDS * 20), 300, tmp_path / name) for name in "ab")
    assert one.text == two.text
    assert one.vocab_size == 300
    made = next((tmp_path / "a").glob("bpe-*-300.json"))
    before = made.stat().st_mtime_ns
    assert bpe.train(documents(WORDS * 20), 300, tmp_path / "a").text == one.text
    assert made.stat().st_mtime_ns == before
    made.write_bytes(made.read_bytes()[:-10])
    assert bpe.train(documents(WORDS * 20), 300, tmp_path / "a").text == one.text


def test_training_reads_a_bounded_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "SAMPLE", 1000)
    texts = [f"{place:04d} " * 40 for place in range(50)]
    sample = list(bpe._sample(documents(*texts), 10))
    assert [text[:4] for text in sample] == [b"0000", b"0010", b"0020", b"0030", b"0040"]
    assert sum(len(text) for text in bpe._sample(documents(*texts), 1)) == 1000
    bpe.train(documents(*texts), 258, tmp_path)


def test_a_vocabulary_beyond_the_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"vocabulary of 5000 tokens, found \d+ bytes, enough for \d+; set corpus.vocab_size to at most",
    ):
        bpe.train(documents(WORDS), 5000, tmp_path)


def test_subwords_pickle(trained: Subwords) -> None:
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.digest == trained.digest
    assert (copy.encode([b"quick"])[0] == trained.encode([b"quick"])[0]).all()


def test_a_bpe_corpus_is_read_from_the_cache_the_second_time(text: Path, own_cache: Path) -> None:
    config = CorpusConfig(name="text", path=text, tokenizer="bpe", vocab_size=300)
    first = data.load(config)
    data._load.cache_clear()
    second = data.load(config)
    assert first.digest == second.digest
    assert (first.train.tokens == second.train.tokens).all()  # type: ignore[union-attr]
    tokens = next(own_cache.glob("tokens-*.bin"))
    reversed_tokens = tokens.read_bytes()[::-1]
    tokens.unlink()  # the corpus above still reads the old file
    tokens.write_bytes(reversed_tokens)
    data._load.cache_clear()
    assert (first.train.tokens == data.load(config).train.tokens).all()  # type: ignore[union-attr]
    assert first.vocab_size == 300


@pytest.fixture
def copied(tmp_path: Path, trained: Subwords) -> Path:
    """A folder like GPT-2's: a small vocabulary in its format."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(trained.text, encoding="utf-8")
    return folder


def test_gpt2_from_a_folder_a_file_and_the_two_old_files(copied: Path, trained: Subwords) -> None:
    old = copied.parent / "old"
    old.mkdir()
    model = json.loads(trained.text)["model"]
    (old / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (old / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]), encoding="utf-8"
    )
    for path in (copied, copied / "tokenizer.json", old):
        loaded = gpt2_tokens.load(path)
        assert loaded.vocab_size == trained.vocab_size
        assert (loaded.encode([WORDS.encode()])[0] == trained.encode([WORDS.encode()])[0]).all()


def test_gpt2_makes_a_corpus(copied: Path, text: Path) -> None:
    corpus = data.load(
        CorpusConfig(name="text", path=text, tokenizer="gpt2", tokenizer_path=copied)
    )
    assert corpus.vocab_size == 300
    assert isinstance(corpus.train, data.Split)
    assert corpus.train.tokens.dtype == np.uint16


def test_truncation_and_gaps_of_a_tokenizer_do_no_harm(copied: Path) -> None:
    made: dict[str, Any] = json.loads((copied / "tokenizer.json").read_text())
    made["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    made["added_tokens"].append({"id": 70_000, "content": "<|far|>", **flags})
    (copied / "tokenizer.json").write_text(json.dumps(made))
    loaded = gpt2_tokens.load(copied)
    assert len(loaded.encode([WORDS.encode()])[0]) > 4
    assert loaded.vocab_size > max(loaded._rust.get_vocab().values())
    assert loaded.separator.dtype == dtype(loaded.vocab_size)


def test_what_is_wrong_with_a_tokenizer_is_said(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"at corpus.tokenizer_path .*nowhere, found neither; give a path that exists or leave it out",
    ):
        gpt2_tokens.load(tmp_path / "nowhere")
    file = copied / "tokenizer.json"
    whole: dict[str, Any] = json.loads(file.read_text())
    file.write_text("{}")
    with pytest.raises(UserError, match=r"expected a tokenizer.json at .*, found something else"):
        gpt2_tokens.load(copied)
    file.write_text(json.dumps({**whole, "pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(
        UserError,
        match=r"expected a byte-level tokenizer like GPT-2's at .*, found one that does not give back",
    ):
        gpt2_tokens.load(copied)
    file.write_text(json.dumps(whole).replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(
        UserError,
        match=r"expected a token <\|endoftext\|> in the tokenizer at .*; add it as a special token",
    ):
        gpt2_tokens.load(copied)


def test_gpt2_without_hub_or_copy_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **options: None)
    with pytest.raises(
        UserError,
        match=r"\(ConnectionError\); connect to the network, set corpus.tokenizer_path .* bpe or bytes",
    ):
        gpt2_tokens.load(None)


def test_gpt2_is_taken_from_the_hub_cache_without_a_network(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"gpt2": str(copied / "tokenizer.json")}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, file: found.get(name)
    )
    assert gpt2_tokens.load(None).vocab_size == 300
