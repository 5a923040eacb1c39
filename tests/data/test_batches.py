"""Batches are a pure function of the index."""

from __future__ import annotations

import copy
import pickle
import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.config.schema import Plant, StressorConfig
from trainenv.data import Corpus, CorpusBatches, Split
from trainenv.data.corpus import interleaved
from trainenv.data.stressors import Stressors
from trainenv.data.tokenizers import Bytes
from trainenv.types import Batch, UserError

ALL = StressorConfig(rare_tokens=0.3, long_sequence=0.3, artefacts=0.3, block_shuffle=0.3)


def made(size: int = 20_000) -> Corpus:
    tokens = np.random.Generator(np.random.Philox(key=1)).integers(0, 256, size).astype(np.uint8)
    return Corpus(
        "made",
        *interleaved(tokens, "made"),
        256,
        "x",
        np.arange(16),
        Bytes().encode(["Ã©ï¿½".encode()])[0],
    )


CORPUS = made()


def batches(stressors: StressorConfig | None = None, **changes: int) -> CorpusBatches:
    shape: dict[str, Any] = {
        "context": 16,
        "batch_size": 16,
        "accumulation": 2,
        "seed": 3,
        **changes,
    }
    plain = CorpusBatches(CORPUS, **shape)
    if stressors is None:
        return plain
    seed = changes.get("seed", 3)
    return plain.under(
        Stressors(
            stressors, CORPUS.rare, CORPUS.artefacts, CORPUS.vocab_size, seed, plain.epoch_steps
        )
    )


def same(one: Batch, two: Batch) -> bool:
    alike = [torch.equal(a, b) for a, b in zip(one.micro, two.micro, strict=True)]
    return all(alike) and (one.index, one.stressors) == (two.index, two.stressors)


@given(
    indices=st.lists(st.integers(0, 2000), min_size=1, max_size=8), seed=st.integers(0, 2**63 - 1)
)
@settings(max_examples=40, deadline=None)
def test_the_same_index_gives_the_same_batch(indices: list[int], seed: int) -> None:
    stressed = batches(ALL, seed=seed)
    first = {index: stressed(index) for index in indices}
    for index in reversed(indices):
        assert same(stressed(index), first[index])
        assert same(batches(ALL, seed=seed)(index), first[index])


def test_copies_give_the_same_batches() -> None:
    stressed = batches(ALL)
    stressed(40)
    copies = (copy.deepcopy(stressed), pickle.loads(pickle.dumps(stressed)))
    assert all(same(one(index), stressed(index)) for one in copies for index in range(50, 0, -1))
    assert copy.deepcopy(stressed).corpus is CORPUS


def test_global_generators_are_left_alone() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index]  # noqa: NPY002
    for index in range(20):
        batches(ALL)(index)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_shapes_and_types() -> None:
    batch = batches()(5)
    assert [tuple(micro.shape) for micro in batch.micro] == [(8, 17), (8, 17)]
    assert all(micro.dtype == torch.int64 and micro.is_contiguous() for micro in batch.micro)
    assert (batch.index, batch.stressors) == (5, ())


def test_an_epoch_holds_each_sequence_once_at_most() -> None:
    assert isinstance(CORPUS.train, Split)
    known = {tuple(row) for row in CORPUS.train.cut(CORPUS.train.starts(16), 17).tolist()}
    plain = batches()
    orders = []
    for epoch in range(3):
        steps = range(epoch * plain.epoch_steps, (epoch + 1) * plain.epoch_steps)
        rows = [
            tuple(row) for index in steps for micro in plain(index).micro for row in micro.tolist()
        ]
        assert len(rows) == len(set(rows)) == len(known) // 16 * 16
        assert set(rows) <= known
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]
    whole = batches(batch_size=2)
    rows = [
        tuple(row)
        for index in range(len(known) // 2)
        for micro in whole(index).micro
        for row in micro.tolist()
    ]
    assert len(known - set(rows)) == len(known) % 2


def test_seeds_differ_in_order_only() -> None:
    one, two = batches(seed=1), batches(seed=2)
    assert not same(one(0), two(0))
    assert one.epoch_steps == two.epoch_steps


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_micro_batches_do_not_change_the_data(accumulation: int) -> None:
    for index in range(60):
        split, whole = (
            batches(ALL, accumulation=accumulation)(index),
            batches(ALL, accumulation=1)(index),
        )
        assert len(split.micro) == accumulation
        assert torch.equal(torch.cat(split.micro), whole.micro[0])
        assert split.stressors == whole.stressors


def test_long_sequences_are_contiguous_text_of_as_many_tokens() -> None:
    assert isinstance(CORPUS.train, Split)
    text = CORPUS.train.tokens.tobytes()
    planted = StressorConfig(planted=(Plant(at=3, kind="long_sequence", steps=2),))
    long = batches(planted)
    for index in range(8):
        batch = long(index)
        if index in {3, 4}:
            assert batch.stressors == ("long_sequence",)
            assert [tuple(micro.shape) for micro in batch.micro] == [(2, 65), (2, 65)]
            assert all(bytes(row) in text for micro in batch.micro for row in micro.tolist())
        else:
            assert same(batch, batches()(index))


def test_stressors_leave_the_other_batches_alone() -> None:
    stressed, plain = batches(ALL), batches()
    clean = [index for index in range(200) if not stressed(index).stressors]
    assert clean
    assert all(same(stressed(index), plain(index)) for index in clean)


def test_a_text_too_short_for_a_batch_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"at least 999 training sequences in corpus made, one batch, found \d+ of 257 tokens in 19250",
    ):
        CorpusBatches(CORPUS, context=256, batch_size=999)
    with pytest.raises(
        UserError, match=r"batch_size \(5\) must be a multiple of accumulation \(2\)"
    ):
        CorpusBatches(CORPUS, context=16, batch_size=5, accumulation=2)
    with pytest.raises(
        UserError,
        match=r"batch_size ÷ accumulation \(2\) must be a multiple of stressors.long_factor \(4\)",
    ):
        batches(ALL, batch_size=4)
    with pytest.raises(
        UserError, match=r"expected 8001 contiguous training tokens for a long sequence"
    ):
        batches(ALL, context=2000, batch_size=4, accumulation=1)


def test_a_batch_is_made_in_microseconds() -> None:
    fast = batches(context=64, batch_size=8, accumulation=1)
    fast(0)
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for index in range(30):
            fast(index)
        rounds.append((time.perf_counter() - start) / 30)
    assert min(rounds) < 300e-6  # 14 µs where it was measured
