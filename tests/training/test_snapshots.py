"""Snapshots: immutable, whole, and told apart by their fingerprint."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainenv.training import snapshots
from trainenv.training.snapshots import capture, expand, fingerprint
from trainenv.types import Snapshot, UserError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
SHAPES = [(), (0,), (3,), (2, 3), (0, 4), (2, 0, 3), (1, 1, 1)]


def made(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist())


def same(one: Any, two: Any) -> bool:
    """Equal to the bit, NaN included, types included."""
    if isinstance(one, Tensor):
        return (
            isinstance(two, Tensor)
            and one.dtype == two.dtype
            and one.shape == two.shape
            and bits(one) == bits(two)
        )
    if isinstance(one, dict):
        return (
            isinstance(two, dict)
            and list(one) == list(two)
            and all(same(one[key], two[key]) for key in one)
        )
    if isinstance(one, list):
        return isinstance(two, list) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or (one != one and two != two))


def state() -> dict[str, Any]:
    return {
        "model": {"weight": torch.arange(6.0).reshape(2, 3), "flag": torch.tensor([True, False])},
        "optimizer": {
            "state": {"0": {"step": torch.tensor(3.0), "moments": [torch.ones(2), torch.zeros(0)]}},
            "lr": 0.1,
        },
        "words": ["a", None, True, 1, 1.0, {"deep": [1.5, "x"]}],
        "seed": 2**63 - 1,
        "empty": {"dict": {}, "list": []},
    }


tensors = st.builds(made, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.integers(0, 99))
plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
names = st.text("abcdef._0", min_size=1, max_size=4)
nested = st.recursive(
    plain | tensors,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(names, below, max_size=3),
    max_leaves=12,
)
states = st.dictionaries(names, nested, max_size=4)


# ── capture and expand ──────────────────────────────────────────────────────────────────────────────────────────────


@given(state=states, step=st.integers(0, 10**9))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_expand_undoes_capture(state: dict[str, Any], step: int) -> None:
    snapshot = capture(step, state)
    assert snapshot.step == step
    assert same(expand(snapshot), state)
    json.dumps(snapshot.state)


def test_tuples_become_lists_and_keys_become_text() -> None:
    assert expand(capture(0, {"betas": (0.9, 0.95), "state": {0: {"x": 1}}})) == {
        "betas": [0.9, 0.95],
        "state": {"0": {"x": 1}},
    }


def test_flat_names() -> None:
    snapshot = capture(
        0, {"model": {"w.x": torch.ones(1)}, "clip": {"state": [torch.ones(2), torch.ones(3)]}}
    )
    assert set(snapshot.tensors) == {"model/w.x", "clip/state/0", "clip/state/1"}
    assert snapshot.nbytes == 4 * 6


def test_nothing_is_shared_with_the_source() -> None:
    source = state()
    before = copy.deepcopy(source)
    snapshot = capture(1, source)
    source["model"]["weight"].fill_(7)
    source["optimizer"]["state"]["0"]["moments"][0].fill_(7)
    source["words"][5]["deep"][0] = 7
    source["words"].append(7)
    source["optimizer"]["lr"] = 7
    assert same(expand(snapshot), before)


def test_no_gradients_are_kept_and_layout_is_plain() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    snapshot = capture(0, {"w": weight, "t": weight.T, "every_other": weight[:, ::2]})
    assert all(not t.requires_grad and t.is_contiguous() for t in snapshot.tensors.values())
    assert torch.equal(snapshot.tensors["t"], weight.T)
    assert torch.equal(snapshot.tensors["every_other"], weight[:, ::2])


def test_tied_weights_are_stored_once_and_restored_as_one() -> None:
    weight = torch.randn(4, 3)
    snapshot = capture(0, {"model": {"wte": weight, "lm_head": weight}, "other": weight.clone()})
    assert len(snapshot.tensors) == 2
    expanded = expand(snapshot)
    assert expanded["model"]["wte"] is expanded["model"]["lm_head"]
    assert torch.equal(expanded["model"]["wte"], weight)


def test_views_that_are_not_the_same_tensor_stay_apart() -> None:
    weight = torch.arange(6.0)
    whole = {
        "whole": weight,
        "start": weight[:3],
        "square": weight.view(2, 3),
        "as_int": weight.view(torch.int32),
        "t": weight.view(2, 3).T,
    }
    assert same(expand(capture(0, whole)), {name: t.contiguous() for name, t in whole.items()})


def test_empty_tensors_are_not_taken_for_one_another() -> None:
    empty = {
        "a": torch.zeros(0),
        "b": torch.zeros(0, 4),
        "c": torch.zeros(0, dtype=torch.int64),
        "d": torch.zeros(0),
    }
    snapshot = capture(0, empty)
    assert len(snapshot.tensors) == 4
    assert same(expand(snapshot), empty)


def test_temporaries_of_equal_values_stay_apart() -> None:
    snapshot = capture(0, {str(n): torch.zeros(3) for n in range(5)})
    assert len(snapshot.tensors) == 5


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, torch.float32])
def test_what_is_no_state_is_named(value: Any) -> None:
    with pytest.raises(
        UserError,
        match=f"the state 'a/b/0' must be tensors, numbers, .* found {type(value).__name__}",
    ):
        capture(0, {"a": {"b": [value]}})


# ── fingerprint ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_states_have_equal_fingerprints() -> None:
    one, two = fingerprint(capture(3, state())), fingerprint(capture(3, state()))
    assert one == two
    assert len(one) == 32
    reordered = dict(reversed(list(state().items())))
    assert fingerprint(capture(3, reordered)) == one


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", range(6))
def test_any_element_counts(dtype: torch.dtype, place: int) -> None:
    tensor = made(dtype, (2, 3))
    before = fingerprint(capture(0, {"t": tensor}))
    flat = tensor.flatten()
    flat[place] = ~flat[place] if dtype == torch.bool else flat[place] + 1
    assert fingerprint(capture(0, {"t": flat.view(2, 3)})) != before


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
        (torch.zeros(4, dtype=torch.float16), torch.zeros(4, dtype=torch.bfloat16)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(6), torch.zeros(2, 3)),
        (torch.zeros(()), torch.zeros(1)),
        (torch.zeros(0), torch.zeros(0, 3)),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.tensor(math.nan), torch.tensor(math.inf)),
        (torch.zeros(1), 0.0),
        (1, 1.0),
        (1, True),
        (0, None),
        ("1", 1),
        ([], {}),
        ([1, 2], [2, 1]),
        (0.1, 0.1 + 2e-17),
        (math.nan, math.inf),
        ({"a": 1}, {"b": 1}),
        (2**53, 2**53 + 1),
    ],
)
def test_any_difference_counts(one: Any, two: Any) -> None:
    equal = not isinstance(one, Tensor) and type(one) is type(two) and one == two
    assert (fingerprint(capture(0, {"x": one})) == fingerprint(capture(0, {"x": two}))) is equal


def test_names_count() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    assert fingerprint(capture(0, {"a": one, "b": two})) != fingerprint(
        capture(0, {"a": two, "b": one})
    )
    assert fingerprint(capture(0, {"a": one})) != fingerprint(capture(0, {"b": one}))


def test_what_is_left_out_does_not_count() -> None:
    one, two = state(), state()
    two["ledger"] = {"main": 3.0, "counts": torch.ones(3)}
    assert fingerprint(capture(0, one)) != fingerprint(capture(0, two))
    assert fingerprint(capture(0, one)) == fingerprint(capture(0, two), leave_out=("ledger",))
    three = {**state(), "ledger_too": torch.ones(3)}
    assert fingerprint(capture(0, one)) != fingerprint(capture(0, three), leave_out=("ledger",))
    nested_name = {**state(), "model": {**state()["model"], "ledger": 1}}
    assert fingerprint(capture(0, one)) != fingerprint(
        capture(0, nested_name), leave_out=("ledger",)
    )


def test_tensors_of_finds_every_one_in_order() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    found = list(snapshots.tensors_of({"a": [one, {"b": two}], "c": (three, 4, "x", None)}))
    assert [id(t) for t in found] == [id(one), id(two), id(three)]


def test_nbytes() -> None:
    assert (
        Snapshot(
            0, {"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros(5, dtype=torch.bool)}, {}
        ).nbytes
        == 29
    )
