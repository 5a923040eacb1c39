"""Batches of a user's own: every form that is documented, and one sentence for any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainenv.batching import as_batch, placed, token_count
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
        UserError, match=f"with accumulation 4, .* multiple of 4 rows,? or a sequence of 4 micro-batches[;,] found {found}$"
    ):
        as_batch(data, 0, 4)


def test_placed_reaches_every_tensor_and_keeps_the_form() -> None:
    micro = {"ids": torch.ones(2), "parts": [torch.ones(1), (torch.ones(3), "x")], "n": 3, "none": None}
    moved = placed(micro, META)
    assert list(moved) == ["ids", "parts", "n", "none"]
    assert (moved["n"], moved["none"], moved["parts"][1][1]) == (3, None, "x")
    assert isinstance(moved["parts"], list)
    assert isinstance(moved["parts"][1], tuple)
    assert {t.device.type for t in (moved["ids"], moved["parts"][0], moved["parts"][1][0])} == {"meta"}
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
