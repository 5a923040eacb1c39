"""Data sets, token files and streams as batches by data index, in runs that are values."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from tests.support.own_runs import assert_value, config, net
from trainenv.data import DatasetBatches, StreamBatches, TokenFileBatches
from trainenv.run import TrainingRun
from trainenv.types import UserError


class Rows(Dataset[Any]):
    """Rows of nine tokens, the first of them noise from all three generators if asked."""

    def __init__(self, count: int = 50, noise: bool = False) -> None:
        self.count = count
        self.noise = noise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Tensor:
        tokens = (torch.arange(9) * (row + 1) + row) % 8
        if self.noise:
            drawn = torch.randint(0, 8, ()) + random.randrange(8) + np.random.randint(8)  # noqa: NPY002
            tokens[0] = drawn % 8
        return tokens


def run_on(batches: Any) -> TrainingRun:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return TrainingRun(model, optimizer, batches, config(), validation=[batches(0)])


# ── map-style data sets ───────────────────────────────────────────────────────────────────────────


def test_map_style_data_set_is_read_by_index() -> None:
    batches = DatasetBatches(dataset=Rows(), batch_size=4, seed=3)
    assert batches.epoch_steps == 12
    assert batches(7).shape == (4, 9)
    assert torch.equal(batches(7), batches(7))
    assert torch.equal(copy.deepcopy(batches)(7), pickle.loads(pickle.dumps(batches))(7))
    assert not torch.equal(batches(7), batches(7 + batches.epoch_steps))
    first = [tuple(row) for index in range(12) for row in batches(index).tolist()]
    every = [tuple(Rows()[row].tolist()) for row in range(50)]
    assert all(first.count(row) <= every.count(row) for row in first)
    in_order = DatasetBatches(dataset=Rows(), batch_size=4, shuffle=False)
    assert torch.equal(in_order(1)[0], Rows()[4])


def test_a_run_on_a_data_set_is_a_value() -> None:
    assert_value(lambda: run_on(DatasetBatches(dataset=Rows(), batch_size=2)))


def test_random_draws_of_a_data_set_are_a_function_of_the_index() -> None:
    batches = DatasetBatches(dataset=Rows(noise=True), batch_size=4)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(batches(3), batches(3))
    seen = {tuple(batches(index)[:, 0].tolist()) for index in range(10)}
    assert len(seen) > 5
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert_value(lambda: run_on(batches))


def test_hugging_face_data_set_with_a_collator() -> None:
    rows = datasets.Dataset.from_dict({"n": list(range(20)), "text": ["a"] * 20})
    batches = DatasetBatches(
        dataset=rows, batch_size=5, collate=lambda rows: torch.tensor([row["n"] for row in rows])
    )
    found = torch.cat([batches(index) for index in range(4)])
    assert sorted(found.tolist()) == list(range(20))
    assert found.tolist() != list(range(20))


def test_data_loader_gives_its_parts() -> None:
    loader = DataLoader(Rows(), batch_size=4, shuffle=True, collate_fn=lambda rows: len(rows))
    batches = DatasetBatches.from_loader(loader, seed=1)
    assert (batches(0), batches.shuffle, batches.epoch_steps) == (4, True, 12)
    assert not DatasetBatches.from_loader(DataLoader(Rows(), batch_size=4)).shuffle
    weighted = DataLoader(Rows(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 50, 50))
    with pytest.raises(UserError, match="the usual sampler"):
        DatasetBatches.from_loader(weighted)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": Endless()}, "without __len__.*for a stream take StreamBatches"),
        ({"dataset": 3}, "without __len__ and __getitem__; give a map-style data set"),
        ({"dataset": Rows(3)}, r"at least batch_size \(4\) rows, found 3"),
        ({"collate": 3}, "collate must be a function"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_wrong_data_sets_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DatasetBatches(**{"dataset": Rows(), "batch_size": 4, **given})


# ── token files ───────────────────────────────────────────────────────────────────────────────────


def written(path: Path, tokens: Any, dtype: str = "uint16", header: bool = False) -> Path:
    array = np.asarray(tokens).astype(dtype)
    head = np.zeros(256, np.int32)
    head[:3] = (20240520, 1, len(array))
    path.write_bytes((head.tobytes() if header else b"") + array.tobytes())
    return path


@pytest.mark.parametrize(("dtype", "header"), [("uint16", False), ("uint16", True), ("uint32", 0)])
def test_token_files_are_cut_into_sequences(tmp_path: Path, dtype: Any, header: bool) -> None:
    one = written(tmp_path / "a.bin", range(101), dtype, header)
    two = written(tmp_path / "b.bin", range(1000, 1057), dtype, header)
    batches = TokenFileBatches(files=[one, two], context=10, batch_size=3, dtype=dtype)
    assert batches.epoch_steps == 5  # 10 sequences and 5
    epochs = []
    for epoch in range(2):
        rows = torch.cat([batches(5 * epoch + place) for place in range(5)])
        assert rows.shape == (15, 11)
        assert torch.equal(rows, rows[:, :1] + torch.arange(11))  # no border is crossed
        starts = rows[:, 0].tolist()
        assert sorted(starts) == [*range(0, 100, 10), *range(1000, 1050, 10)]
        epochs.append(starts)
    assert epochs[0] != epochs[1]
    assert torch.equal(pickle.loads(pickle.dumps(batches))(3), batches(3))
    assert len(pickle.dumps(batches)) < 2000


def test_a_run_on_token_files_is_a_value(tmp_path: Path) -> None:
    path = written(tmp_path / "train.bin", np.arange(500) ** 2 % 8)
    assert_value(lambda: run_on(TokenFileBatches(files=path, context=8, batch_size=2)))


def test_large_token_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as opened:
        opened.truncate(2**36)  # a sparse file of 64 GiB
    batches = TokenFileBatches(files=path, context=1024, batch_size=8)
    assert batches(10**6).shape == (8, 1025)
    assert batches.epoch_steps == (2**35 - 1) // 1024 // 8


def test_wrong_token_files_are_refused(tmp_path: Path) -> None:
    def make(files: Any, **given: Any) -> None:
        TokenFileBatches(files=files, **{"context": 8, "batch_size": 2, **given})

    with pytest.raises(UserError, match="found No such file or directory; give a path that exists"):
        make(tmp_path / "none.bin")
    (tmp_path / "odd.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"tokens of 2 bytes .* found 3 bytes"):
        make(tmp_path / "odd.bin")
    short = written(tmp_path / "short.bin", range(16))
    with pytest.raises(UserError, match=r"batch_size \(2\) sequences of 8 \+ 1 .* found 1"):
        make(short)
    with pytest.raises(UserError, match="paths of token files, found none"):
        make([])
    with pytest.raises(UserError, match="paths of token files, found int"):
        make(3)
    with pytest.raises(UserError, match="dtype must be one of uint16, uint32"):
        make(short, dtype="int64")


# ── streams ───────────────────────────────────────────────────────────────────────────────────────


class Stream:
    """Batches 0 … count − 1, with a state as a StatefulDataLoader has; counts what is read."""

    def __init__(self, count: int = 1000, lossy: bool = False) -> None:
        self.count = count
        self.lossy = lossy
        self.place = 0
        self.read = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.place < self.count:
            self.place += 1
            self.read += 1
            yield batch(self.place - 1)
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"] + self.lossy


def batch(index: int) -> Tensor:
    return torch.randint(0, 8, (2, 9), generator=torch.Generator().manual_seed(index))


def test_stream_is_a_function_of_the_index() -> None:
    stream = Stream()
    batches = StreamBatches(stream, every=8)
    order = [0, 0, 40, 39, 3, 41, 100, 17, 16, 15, 99]
    for index in order:
        assert torch.equal(batches(index), batch(index))
    assert batches.recorded[:3] == (0, 8, 16)
    stream.read = 0
    batches(90)
    assert stream.read <= 8  # from the place recorded at 88


def test_old_places_are_forgotten_and_the_stream_is_still_read_right() -> None:
    batches = StreamBatches(Stream(), every=2, places=3)
    batches(60)
    assert batches.recorded == (0, 56, 58, 60)
    assert torch.equal(batches(5), batch(5))


def test_stream_starts_again_at_its_end() -> None:
    batches = StreamBatches(Stream(count=10), every=4)
    for index in (9, 10, 25, 3, 19):
        assert torch.equal(batches(index), batch(index % 10))


def test_a_run_on_a_stream_is_a_value() -> None:
    assert_value(lambda: run_on(StreamBatches(Stream(), every=3)))


def test_recorded_places_are_carried_to_another_process() -> None:
    first = StreamBatches(Stream(), every=8)
    first(200)
    stream = Stream()
    second = StreamBatches(stream, every=8)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    stream.read = 0
    assert torch.equal(second(195), batch(195))
    assert stream.read <= 8


def test_recorded_places_lie_in_the_snapshots_of_a_run() -> None:
    first = run_on(StreamBatches(Stream(), every=8))
    first.advance(30)
    snapshot = first.snapshot()
    stream = Stream()
    second = run_on(StreamBatches(stream, every=8))
    second.restore(snapshot)
    assert second.fingerprint() == first.fingerprint()
    stream.read = 0
    second.advance(1)
    assert stream.read <= 8


def test_iterable_data_set_of_hugging_face() -> None:
    rows = datasets.Dataset.from_dict({"n": list(range(30))}).to_iterable_dataset()
    batches = StreamBatches(rows, every=4)
    assert [batches(index)["n"] for index in (0, 7, 2, 29, 30, 11)] == [0, 7, 2, 29, 0, 11]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (iter([1]), r"can be read again.*without state_dict and load_state_dict.*only watch"),
        (DataLoader(Endless()), "without state_dict and load_state_dict"),
        (Stream(lossy=True), "must come back to its place exactly"),
        (Stream(count=0), "expected batches in the stream Stream, found none"),
    ],
)
def test_streams_that_cannot_go_back_are_refused(stream: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        StreamBatches(stream)
