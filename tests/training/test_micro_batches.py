"""Batches of a user's own: every form that is documented, and one sentence for any other."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BatchEncoding

from trainenv.training.micro_batches import as_batch, labelled, pass_size, placed, token_count
from trainenv.training.snapshots import tensors_of
from trainenv.types import Batch, UserError

CPU, META = torch.device("cpu"), torch.device("meta")


def test_a_batch_stays_what_it_is() -> None:
    batch = Batch(micro=(1, 2), index=9, stressors=("artefacts",))
    assert as_batch(batch, 3, 5) is batch


@pytest.mark.parametrize("data", [torch.ones(3, 2), {"a": 1}, [1, 2], (1,), "text", None])
def test_without_accumulation_anything_is_one_micro_batch(data: Any) -> None:
    batch = as_batch(data, 7, 1)
    assert len(batch.micro) == 1
    assert batch.micro[0] is data
    assert (batch.index, batch.stressors) == (7, ())


@given(accumulation=st.integers(2, 6), rows=st.integers(1, 4))
def test_a_tensor_is_cut_into_equal_parts_in_order(accumulation: int, rows: int) -> None:
    data = torch.arange(accumulation * rows * 3).reshape(-1, 3)
    batch = as_batch(data, 1, accumulation)
    assert [len(micro) for micro in batch.micro] == [rows] * accumulation
    assert torch.equal(torch.cat(batch.micro), data)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_sequence_is_taken_as_the_micro_batches(kind: Any) -> None:
    parts = [torch.ones(2, 3), {"x": 1}, "c"]
    batch = as_batch(kind(parts), 1, 3)
    assert isinstance(batch.micro, tuple)
    assert all(a is b for a, b in zip(batch.micro, parts))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (torch.ones(5, 2), "Tensor of length 5"),
        ([1, 2, 3], "list of length 3"),
        ((), "tuple of length 0"),
        ({"a": 1}, "dict of length 1"),
        ({}, "dict of length 0"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_divided(data: Any, found: str) -> None:
    with pytest.raises(
        UserError,
        match=f"with accumulation 4, .* multiple of 4 rows,? or a sequence of 4 micro-batches[;,] found {found}$",
    ):
        as_batch(data, 0, 4)


def cut(data: Any, accumulation: int) -> tuple[Any, ...]:
    return as_batch(data, 0, accumulation).micro


class Two(NamedTuple):
    x: Any
    y: Any


X = torch.arange(32).reshape(4, 8)
Y = X + 100


def test_a_mapping_is_cut_by_rows() -> None:
    mask, names = torch.ones(4, 8, dtype=torch.bool), ["a", "b", "c", "d"]
    nested = {
        "ids": X,
        "more": {"mask": mask, "pair": (Y, Y[:, 0])},
        "names": names,
        "arrays": Y.numpy(),
    }
    shared = {
        "positions": torch.arange(8)[None],
        "scale": torch.tensor(2.0),
        "task": "lm",
        "none": None,
        "layers": ["p", "q"],
    }
    first, second = cut(nested | shared, 2)
    for micro, rows in ((first, slice(0, 2)), (second, slice(2, 4))):
        assert torch.equal(micro["ids"], X[rows])
        assert torch.equal(micro["more"]["mask"], mask[rows])
        assert isinstance(micro["more"]["pair"], tuple)
        assert torch.equal(micro["more"]["pair"][1], Y[rows, 0])
        assert micro["names"] == names[rows]
        assert np.array_equal(micro["arrays"], Y.numpy()[rows])
        assert all(micro[name] is shared[name] for name in shared)


@pytest.mark.parametrize("kind", [UserDict, OrderedDict, BatchEncoding])
def test_any_kind_of_mapping(kind: Any) -> None:
    micro = cut(kind({"input_ids": X, "labels": Y}), 4)
    assert [part["labels"].tolist() for part in micro] == [
        Y[row : row + 1].tolist() for row in range(4)
    ]


@pytest.mark.parametrize("accumulation", [2, 4])
def test_a_tuple_of_tensors_is_one_batch(accumulation: int) -> None:
    for data in (
        (X, Y),
        Two(X, Y),
        (X, Y.float()),
        (X, Y, None),
        (X,),
        ((X, Y), Y),
        ({"ids": X}, Y),
    ):
        micro = cut(data, accumulation)
        assert len(micro) == accumulation
        assert {type(part) for part in micro} == {type(data)}
        assert sum(len(next(tensors_of(part))) for part in micro) == 4
        if isinstance(data, Two):
            assert torch.equal(torch.cat([part.y for part in micro]), Y)


@pytest.mark.parametrize(
    "data",
    [
        [X, Y],
        [(X, Y), (X, Y)],
        ((X, Y), (X, Y)),
        ({"x": X}, {"x": Y}),
        [{"x": X}, {"x": Y}],
        (X[:1], Y[:1]),  # too few rows to be cut
        (X, Y[:3]),  # no batch: the rows differ
        [X, Y[:3]],
    ],
)
def test_sequences_of_micro_batches(data: Any) -> None:
    assert all(a is b for a, b in zip(cut(data, 2), data, strict=True))


@pytest.mark.parametrize("data", [[X.float(), Y[:, 0]], [X, Y.float()], [{"ids": X}, Y]])
def test_what_a_data_loader_makes_of_inputs_and_labels_is_one_batch(data: list[Any]) -> None:
    for accumulation in (2, 4):
        micro = cut(data, accumulation)
        assert len(micro) == accumulation
        assert all(isinstance(part, list) for part in micro)
        assert torch.equal(torch.cat([part[1] for part in micro]), data[1])


def test_a_list_of_inputs_and_shifted_labels_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"the second of these is the first shifted by a token; return \(inputs, labels\) as",
    ):
        cut([X[:, :-1], X[:, 1:]], 2)
    zeros = torch.zeros(2, 5, dtype=torch.int64)
    assert len(cut([zeros, zeros], 2)) == 2


def test_an_objective_of_bare_tensors_takes_tuples_as_micro_batches() -> None:
    assert as_batch((X, Y), 0, 2, bare=True).micro == (X, Y)
    assert [len(part) for part in as_batch(X, 0, 2, bare=True).micro] == [2, 2]
    with pytest.raises(UserError, match="found tuple of length 2"):
        as_batch((X, Y), 0, 4, bare=True)


@pytest.mark.parametrize(
    ("data", "accumulation", "found"),
    [
        (
            {"x": X, "y": Y[:3]},
            2,
            r"as many rows each, found 4 and 3; put what is the same for all rows into tensors of one row",
        ),
        ((X, Y, Y[:2]), 2, "found 4 and 2"),
        (
            {"x": X, "y": Y},
            3,
            r"a multiple of 3 rows, found 4 in each tensor of a dict; return other rows",
        ),
        ((X, Y), 3, "a multiple of 3 rows, found 4 in each tensor of a tuple"),
        (Two(X, Y), 3, "a multiple of 3 rows, found 4"),
        ({"x": "text"}, 2, "found dict of length 1"),
        ({"x": torch.zeros(0, 3)}, 2, "found dict of length 1"),
        ([X], 2, "found list of length 1"),
        (torch.zeros(0, 3), 2, "found Tensor of length 0"),
    ],
)
def test_rows_that_do_not_divide(data: Any, accumulation: int, found: str) -> None:
    with pytest.raises(UserError, match=f"with accumulation {accumulation}, .*{found}"):
        cut(data, accumulation)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least one micro-batch, found none at data index 3"):
        as_batch(Batch(micro=(), index=3), 3, 1)


def test_placed_reaches_every_tensor_and_keeps_the_form() -> None:
    micro = {
        "ids": torch.ones(2),
        "parts": [torch.ones(1), (torch.ones(3), "x")],
        "n": 3,
        "none": None,
    }
    moved = placed(micro, META)
    assert list(moved) == ["ids", "parts", "n", "none"]
    assert (moved["n"], moved["none"], moved["parts"][1][1]) == (3, None, "x")
    assert isinstance(moved["parts"], list)
    assert isinstance(moved["parts"][1], tuple)
    assert {t.device.type for t in (moved["ids"], moved["parts"][0], moved["parts"][1][0])} == {
        "meta"
    }
    assert micro["ids"].device == CPU  # type: ignore[union-attr]


def test_nothing_is_copied_that_is_in_place() -> None:
    tensor = torch.ones(2)
    assert placed([tensor], CPU)[0] is tensor


@pytest.mark.parametrize(
    ("micro", "expected"),
    [
        (torch.zeros(3, 9, dtype=torch.int64), 3 * 8),
        ({"x": torch.zeros(2, 50), "input_ids": torch.zeros(3, 9, dtype=torch.int32)}, 3 * 8),
        ([torch.zeros(4, 5, dtype=torch.int64), torch.zeros(9, 9, dtype=torch.int64)], 4 * 4),
        ((torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)), 4),
        (torch.zeros(3, 9), 0),
        ("text", 0),
        (np.zeros((3, 3)), 0),
    ],
)
def test_token_count(micro: Any, expected: int) -> None:
    assert token_count(micro) == expected
    assert pass_size(micro) == expected or (not expected and pass_size(micro) > 0)


@pytest.mark.parametrize(
    ("micro", "expected"),
    [
        (torch.zeros(3, 9), 3),
        ({"x": torch.zeros(3, 9), "valid": torch.ones(3, 9, dtype=torch.bool)}, 3),
        (torch.zeros(3, 1, dtype=torch.int64), 3),
        (torch.zeros(0, 5), 1),
        (torch.zeros(()), 1),
        (np.zeros((3, 3)), 3),
        ({"input_ids": np.zeros((3, 9), dtype=np.int64)}, 3 * 8),
        ("text", 1),
        (None, 1),
    ],
)
def test_what_a_pass_works_on_is_never_nothing(micro: Any, expected: int) -> None:
    assert pass_size(micro) == expected


def ignoring(*lengths: int, of: int = 8) -> Tensor:
    """Labels [rows, 8], of which the first of each row count."""
    labels = torch.arange(1, len(lengths) * of + 1).reshape(-1, of)
    for row, length in enumerate(lengths):
        labels[row, length:] = -100
    return labels


IDS = torch.arange(50, 66).reshape(2, 8)
SAME = torch.where(ignoring(5, 1) == -100, -100, IDS)  # of which a causal model predicts 4 and 0
MASK = (ignoring(5, 2) != -100).long()


@pytest.mark.parametrize(
    ("micro", "expected"),
    [
        (IDS, 2 * 7),
        ((IDS,), 2 * 7),
        ((IDS, ignoring(5, 1)), 6),
        ([IDS, ignoring(0, 0)], 0),
        ((IDS, MASK, ignoring(3, 2)), 5),
        ((IDS, SAME), 4),
        ((IDS, ignoring(5, 3), ignoring(4, 1) != -100), 5),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)), 4),
        ((torch.zeros(4, 3), torch.zeros(4, 1)), 4),
        (torch.zeros(4, 3), 4),
        ({"input_ids": IDS, "labels": ignoring(5, 1)}, 6),
        ({"input_ids": IDS, "labels": SAME}, 4),
        ({"input_ids": IDS, "labels": IDS}, 14),
        ({"labels": ignoring(5, 1), "input_ids": IDS, "attention_mask": torch.ones(2, 8)}, 6),
        ({"inputs": IDS, "targets": ignoring(8, 2)}, 10),
        ({"x": torch.zeros(2, 5), "label": torch.zeros(2, dtype=torch.int64)}, 2),
        ({"input_ids": IDS, "labels": torch.zeros(2)}, 2),
        ({"tokens": IDS, "labels": ignoring(8, 8), "loss_mask": MASK}, 7),
        ({"tokens": IDS, "labels": IDS, "loss_mask": MASK}, 5),
        ({"input_ids": IDS, "attention_mask": MASK}, 5),
        ({"input_ids": IDS, "loss_mask": MASK[:, 1:], "attention_mask": MASK}, 5),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 8, 8)}, 14),
        ({"input_ids": IDS.numpy(), "labels": SAME.numpy()}, 4),
        ({"input_ids": IDS, "labels": None}, 14),
        ({"x": torch.zeros(3, 2)}, 3),
        ("text", 1),
    ],
)
def test_labelled_tokens(micro: Any, expected: int) -> None:
    assert labelled([micro]) == [expected]


def test_whether_labels_are_shifted_is_decided_for_all_micro_batches_together() -> None:
    # In the second one the only label is the input by chance.
    one, two = (
        {"input_ids": IDS, "labels": ignoring(5, 1)},
        {"input_ids": IDS[:1], "labels": SAME[1:] * 0 - 100},
    )
    two["labels"][0, 0] = IDS[0, 0]
    assert labelled([two]) == [0]
    assert labelled([one, two]) == [6, 1]
    assert labelled([{"input_ids": IDS, "labels": SAME}, two, IDS]) == [4, 0, 14]


def test_a_tuple_of_numpy_arrays_is_one_batch() -> None:
    inputs, targets = np.arange(12.0).reshape(4, 3), np.arange(4.0).reshape(4, 1)
    first, second = as_batch((inputs, targets), 0, 2).micro
    assert np.array_equal(first[0], inputs[:2])
    assert np.array_equal(first[1], targets[:2])
    assert np.array_equal(second[0], inputs[2:])
    assert np.array_equal(second[1], targets[2:])


def test_numpy_arrays_that_cannot_be_one_batch_are_micro_batches() -> None:
    assert as_batch((np.ones((3, 2)), np.ones((5, 2))), 0, 2).micro[1].shape == (5, 2)
