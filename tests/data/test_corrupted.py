"""Batches under span corruption: a function of the data index, for any number of micro-batches."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import Tensor

from trainenv.data import CorruptedBatches
from trainenv.run import TrainingRun

SMALL: dict[str, Any] = {
    "batch_size": 4,
    "model.width": 32,
    "model.layers": 1,
    "validation": {"sequences": 4, "test_sequences": 4, "full_every": 5},
}


def made(**overrides: Any) -> TrainingRun:
    more = {key.replace("__", "."): value for key, value in overrides.items()}
    return TrainingRun.from_config("t5-tiny", {**SMALL, **more})


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(one[name], other[name]) for name in ("input_ids", "labels"))


def joined(micro: Any) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in micro]) for name in micro[0]}


def test_a_function_of_seed_and_index() -> None:
    batches = made().batches
    assert isinstance(batches, CorruptedBatches)
    (first,) = batches(3).micro
    (again,) = pickle.loads(pickle.dumps(batches))(3).micro
    assert same(first, again)
    assert not same(first, batches(4).micro[0])
    assert not same(first, made(seed=1).batches(3).micro[0])


def test_micro_batches_are_parts_of_the_same_batch() -> None:
    whole = joined(made().batches(3).micro)
    parts = made(accumulation=2).batches(3).micro
    assert len(parts) == 2
    assert same(whole, joined(parts))


def test_lengths_and_what_the_index_covers() -> None:
    batches = made().batches
    assert (batches.context, batches.batches.context) == (64, 69)
    (micro,) = batches(0).micro
    assert (tuple(micro["input_ids"].shape), tuple(micro["labels"].shape)) == ((4, 64), (4, 14))
    assert batches.epoch_steps == batches.batches.epoch_steps
    assert batches.corpus is batches.batches.corpus


def test_the_text_is_that_of_the_corpus() -> None:
    batches = made().batches
    (text,) = batches.batches(5).micro
    (micro,) = batches(5).micro
    kept = [row[row < 256].tolist() for row in micro["input_ids"]]
    lost = [row[row < 256].tolist() for row in micro["labels"]]
    for row, one, other in zip(text.tolist(), kept, lost):
        assert sorted(row) == sorted(one + other)


def test_long_sequences_keep_the_share() -> None:
    planted = [{"at": 2, "kind": "long_sequence"}]
    run = made(stressors__planted=planted)
    batch = run.batches(2)
    assert batch.stressors == ("long_sequence",)
    (micro,) = batch.micro
    assert tuple(micro["input_ids"].shape) == (1, 250)
    assert tuple(micro["labels"].shape) == (1, 57)
    vocabulary = run.vocabulary or 0
    assert max(int(micro["labels"].max()), int(micro["input_ids"].max())) == vocabulary - 1
    run.advance(3)


def test_sets_to_evaluate_on_do_not_depend_on_the_seed() -> None:
    one, other = made(), made(seed=1)
    for name in ("_validation", "_full_validation", "_test"):
        assert all(map(same, getattr(one, name), getattr(other, name)))
    assert same(one._probe_batch, other._probe_batch)
    assert not same(one._validation[0], one._test[0])
