"""The fixed split, and where sequences are cut."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv import data
from trainenv.config.schema import CorpusConfig
from trainenv.data.corpus import Split, held_out, interleaved, rarest
from trainenv.types import UserError


def covered(split: Split, context: int) -> set[int]:
    """Places of every token that the sequences of a split hold, targets included."""
    return {place for start in split.starts(context) for place in range(start, start + context + 1)}


@given(size=st.integers(640, 60_000), context=st.integers(2, 100))
@settings(max_examples=30, deadline=None)
def test_splits_never_share_a_token(size: int, context: int) -> None:
    parts = interleaved(np.arange(size, dtype=np.uint32), "x")
    places = [covered(part, context) for part in parts]
    for one, place in enumerate(places):
        assert not place & set().union(*places[one + 1 :])
    assert sum(part.size for part in parts) == size
    assert max(set().union(*places), default=0) < size


@pytest.mark.parametrize("size", [640, 100_003, 3_000_001, 20_000_000])
def test_the_shares_of_the_split(size: int) -> None:
    train, *apart = interleaved(np.zeros(size, np.uint8), "x")
    for part in apart:
        assert part.size / size == pytest.approx(1 / 80, rel=0.1)
    assert len(train.runs) == sum(len(part.runs) for part in apart) + 1


def test_training_and_probe_are_those_of_before_there_was_a_test_part() -> None:
    """Runs of earlier versions can be resumed: 78 of 80 segments train, in fixed places."""
    train, validation, probe, test = interleaved(np.zeros(800, np.uint8), "x")
    assert train.runs == ((0, 190), (200, 390), (400, 590), (600, 800))
    assert probe.runs == ((390, 400),)
    assert (validation.runs, test.runs) == (((190, 200),), ((590, 600),))


def test_a_sources_own_held_out_tokens_are_a_third_each() -> None:
    validation, probe, test = held_out(np.zeros(901, np.uint8))
    assert (validation.runs, test.runs, probe.runs) == (
        ((0, 300),),
        ((300, 600),),
        ((600, 901),),  # as before there was a test part
    )


@given(size=st.integers(6, 5000), context=st.integers(2, 100))
@settings(max_examples=30, deadline=None)
def test_the_parts_of_a_sources_own_tokens_never_share_one(size: int, context: int) -> None:
    parts = held_out(np.arange(size, dtype=np.uint32))
    places = [covered(part, context) for part in parts]
    for one, place in enumerate(places):
        assert not place & set().union(*places[one + 1 :])
    assert sum(part.size for part in parts) == size


@pytest.mark.parametrize("tokens", [{}, {"tokenizer": "bpe", "vocab_size": 512}])
def test_the_embedded_text_has_64_000_tokens_to_test_on(tokens: dict[str, Any]) -> None:
    corpus = data.load(CorpusConfig(name="stdlib", **tokens))
    for context in (32, 64):
        assert corpus.test_sequences(context, 10**6)[:, 1:].size > 64_000


def test_more_test_sequences_than_there_are_means_all(corpus: data.Corpus) -> None:
    starts = corpus.test.starts(8)
    assert (corpus.test_sequences(8, 10**6) == corpus.test.cut(starts, 9)).all()
    assert len(corpus.test_sequences(8, 3)) == 3
    assert (
        corpus.all_validation_sequences(8)
        == corpus.validation_sequences(8, len(corpus.validation.starts(8)))
    ).all()
    with pytest.raises(UserError, match="expected 1 test sequences of 9001 tokens, found 0"):
        corpus.test_sequences(9000, 5)


def test_every_target_of_a_run_is_trained_on_once() -> None:
    split = Split(np.arange(200, dtype=np.uint8), ((10, 75), (80, 90), (100, 197)))
    starts = split.starts(16)
    targets = split.cut(starts, 17)[:, 1:].ravel()
    assert len(set(targets)) == len(targets)
    assert set(targets) == {*range(11, 75), *range(101, 197)}


def test_long_sequences_stay_in_a_run() -> None:
    split = Split(np.arange(200, dtype=np.uint8), ((10, 75), (80, 90), (100, 197)))
    pulled = split.pulled_in(split.starts(8), 65)
    assert set(pulled) <= {10, *range(100, 133)}
    with pytest.raises(
        UserError,
        match="expected 98 contiguous training tokens for a long sequence, found at most 97; give more",
    ):
        split.pulled_in(split.starts(8), 98)


def test_held_out_sequences_are_fixed_spread_and_apart(corpus: data.Corpus) -> None:
    for part, take in (
        (corpus.validation, corpus.validation_sequences),
        (corpus.probe, corpus.probe_sequences),
        (corpus.test, corpus.test_sequences),
    ):
        sequences = take(32, 5)
        assert sequences.shape == (5, 33)
        assert sequences.dtype == np.int64
        assert (sequences == take(32, 5)).all()
        everything = part.cut(part.starts(32), 33)
        assert len(np.unique(take(32, len(everything)), axis=0)) == len(everything)
        assert not (sequences[0] == everything[0]).all()  # in the middle of the first fifth


def test_too_many_sequences_are_refused_with_the_numbers(corpus: data.Corpus) -> None:
    with pytest.raises(
        UserError,
        match=r"expected 500 probe sequences of 65 tokens, found \d+ in \d+ probe tokens; ask for fewer",
    ):
        corpus.probe_sequences(64, 500)
    with pytest.raises(
        UserError,
        match=r"expected 1 validation sequences of 9001 tokens, found 0 in \d+ validation tokens",
    ):
        corpus.validation_sequences(9000, 1)


def test_rare_tokens_are_the_rarest() -> None:
    tokens = np.repeat(np.arange(90, dtype=np.uint16), np.arange(90))
    assert rarest(tokens, 96).tolist() == [0, 90, 91, 92, 93, 94]  # ties go to the smaller token
    assert len(rarest(tokens, 1600)) == 100


def test_what_stressors_are_made_of_is_in_the_vocabulary(corpus: data.Corpus) -> None:
    assert corpus.rare.max() < corpus.vocab_size
    assert corpus.artefacts.max() < corpus.vocab_size
    assert "�" in corpus.artefacts.astype(np.uint8).tobytes().decode()


def test_a_copy_shares_the_tokens(corpus: data.Corpus) -> None:
    assert copy.deepcopy(corpus) is corpus


def test_max_tokens_cuts_the_text(text: Path) -> None:
    corpus = data.load(CorpusConfig(name="text", path=text, max_tokens=8000))
    assert isinstance(corpus.train, Split)
    assert len(corpus.train.tokens) == 8000
    assert not corpus.train.tokens.flags.writeable
