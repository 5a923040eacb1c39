"""A stream's tokens are a fixed sequence, whoever reads how much of it in which order, and survive in the cache."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv import data
from trainenv.config.schema import CorpusConfig, Plant, StressorConfig
from trainenv.data import CorpusBatches, TokenStream
from trainenv.data.corpus import Indices
from trainenv.data.documents import Documents
from trainenv.data.stressors import Stressors
from trainenv.data.tokenizers import Bytes
from trainenv.types import UserError

SHARDS = [
    [bytes([65 + shard, 97 + page % 26]) * (page * 7 % 23) for page in range(40)]
    for shard in range(3)
]
TEXT = np.frombuffer(b"".join(page + b"\n\n" for shard in SHARDS for page in shard), np.uint8)


def read(pages: list[list[bytes]], shard: int) -> Iterator[bytes]:
    return iter(pages[shard])


def documents() -> Documents:
    return Documents(("0", "1", "2"), partial(read, SHARDS))


def stream(folder: Path, limit: int | None = None, chunk: int = 100) -> TokenStream:
    return TokenStream(documents(), Bytes(), folder, limit, chunk)


def everything(tokens: TokenStream) -> Indices:
    whole: Indices = tokens.cut(np.zeros(1, np.int64), tokens.grow(10**9))[0]
    return whole


def test_the_text_comes_out_whole(tmp_path: Path) -> None:
    assert (everything(stream(tmp_path)) == TEXT).all()
    assert (everything(stream(tmp_path)) == TEXT).all()  # from the cache


@given(
    starts=st.lists(st.integers(0, len(TEXT) - 41), min_size=1, max_size=12),
    chunk=st.integers(1, 400),
)
@settings(max_examples=25, deadline=None)
def test_any_order_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, starts: list[int], chunk: int
) -> None:
    tokens = stream(tmp_path_factory.mktemp("stream"), chunk=max(chunk, 20))
    for start in starts:
        assert tokens.grow(start + 40) == start + 40
        assert (tokens.cut(np.array([start]), 40)[0] == TEXT[start : start + 40]).all()


def test_it_ends_at_the_text_or_at_its_limit(tmp_path: Path) -> None:
    assert stream(tmp_path).grow(10**6) == len(TEXT)
    assert stream(tmp_path, limit=333).grow(10**6) == 333
    exactly = len(TEXT) // 2 if len(TEXT) % 2 == 0 else len(TEXT)
    assert stream(tmp_path, chunk=exactly).grow(10**6) == len(TEXT)


def test_a_reopened_stream_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stream(tmp_path).grow(2450)  # well into the last shard
    made = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.tokens")}
    assert len(made) == 25
    opened = []

    def noting(shard: int) -> Iterator[bytes]:
        opened.append(shard)
        return read(SHARDS, shard)

    again = TokenStream(Documents(("0", "1", "2"), noting), Bytes(), tmp_path, None, 100)
    assert (everything(again) == TEXT).all()
    assert opened == [2]
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == made


@pytest.mark.parametrize("harm", ["torn", "changed", "no sidecar", "foreign", "gone"])
def test_a_chunk_that_is_not_whole_is_made_again(tmp_path: Path, harm: str) -> None:
    everything(stream(tmp_path))
    for file in (tmp_path / "100-000004.tokens", max(tmp_path.glob("*.tokens"))):
        sidecar = file.with_name(file.name + ".json")
        if harm == "torn":
            file.write_bytes(file.read_bytes()[:-7])
        elif harm == "changed":
            file.write_bytes(file.read_bytes()[::-1] + b"!")
        elif harm == "no sidecar":
            sidecar.unlink()
        elif harm == "foreign":
            sidecar.write_text('["not", "ours"]')
        else:
            file.unlink()
    assert (everything(stream(tmp_path)) == TEXT).all()
    assert (everything(stream(tmp_path)) == TEXT).all()


def test_a_failure_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    failing = [True]

    def read_once(shard: int) -> Iterator[bytes]:
        for place, page in enumerate(SHARDS[shard]):
            if shard == 1 and place == 20 and failing:
                failing.clear()
                raise UserError("the network is gone")
            yield page

    tokens = TokenStream(Documents(("0", "1", "2"), read_once), Bytes(), tmp_path, None, 100)
    with pytest.raises(UserError, match="network"):
        tokens.grow(10**6)
    assert (everything(tokens) == TEXT).all()


def test_copies_share_a_stream_and_pickles_reopen_it(tmp_path: Path) -> None:
    tokens = stream(tmp_path)
    tokens.grow(300)
    assert copy.deepcopy(tokens) is tokens
    assert (everything(pickle.loads(pickle.dumps(tokens))) == TEXT).all()


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UserError,
        match=r"expected to be able to write the corpus cache at .*; set corpus.cache or TRAINENV_CACHE",
    ):
        stream(tmp_path / "file" / "below").grow(10)


@pytest.fixture
def c4(c4_copy: Path) -> data.Corpus:
    return data.load(CorpusConfig(name="c4", path=c4_copy))


def test_batches_of_a_stream_follow_the_text_and_start_again(c4: data.Corpus) -> None:
    assert isinstance(c4.train, TokenStream)
    batches = CorpusBatches(c4, context=16, batch_size=4)
    text = c4.train.cut(np.zeros(1, np.int64), c4.train.grow(10**9))[0]
    epoch = (len(text) - 1) // 64
    for index in (0, 3, epoch - 1, epoch, 2 * epoch + 3, 1):
        at = index % epoch * 64
        batch = batches(index).micro[0]
        assert batch[:, :-1].flatten().tolist() == text[at : at + 64].tolist()
        assert batch[:, 1:].flatten().tolist() == text[at + 1 : at + 65].tolist()
    assert batches.epoch_steps == 10_000


def test_long_sequences_of_a_stream_hold_the_same_text(c4: data.Corpus) -> None:
    plain = CorpusBatches(c4, context=16, batch_size=8)
    planted = StressorConfig(planted=(Plant(at=2, kind="long_sequence"),))
    long = plain.under(Stressors(planted, c4.rare, c4.artefacts, c4.vocab_size, 0, 100))(2)
    assert long.micro[0].shape == (2, 65)
    assert torch.equal(long.micro[0][:, :-1].flatten(), plain(2).micro[0][:, :-1].flatten())


def test_a_limit_is_the_length_of_an_epoch(c4_copy: Path) -> None:
    corpus = data.load(CorpusConfig(name="c4", path=c4_copy, max_tokens=2000))
    batches = CorpusBatches(corpus, context=16, batch_size=4)
    assert batches.epoch_steps == 31
    assert torch.equal(batches(31).micro[0], batches(0).micro[0])


def test_a_stream_too_short_for_a_batch_is_refused(c4: data.Corpus) -> None:
    with pytest.raises(
        UserError,
        match=r"one batch, found a stream of \d+ tokens, where 10240001 are needed; give more text",
    ):
        CorpusBatches(c4, context=1024, batch_size=10_000)(0)


def test_streams_of_different_texts_have_different_digests(c4: data.Corpus, c4_copy: Path) -> None:
    again = data.load(CorpusConfig(name="c4", path=c4_copy, cache=c4_copy / "other"))
    assert again.digest == c4.digest
    shorter = data.load(CorpusConfig(name="c4", path=c4_copy, max_tokens=100))
    assert shorter.digest != c4.digest
    (c4_copy / "en" / "c4-train.00001-of-01024.json.gz").unlink()
    assert (
        data.load(CorpusConfig(name="c4", path=c4_copy, cache=c4_copy / "third")).digest
        != c4.digest
    )


def test_a_bpe_stream_is_the_same_from_two_caches(c4_copy: Path, tmp_path: Path) -> None:
    loaded = [
        data.load(
            CorpusConfig(
                name="c4", path=c4_copy, tokenizer="bpe", vocab_size=300, cache=tmp_path / name
            )
        )
        for name in "ab"
    ]
    assert loaded[0].digest == loaded[1].digest
    one, two = (CorpusBatches(corpus, context=16, batch_size=4)(7) for corpus in loaded)
    assert torch.equal(one.micro[0], two.micro[0])
