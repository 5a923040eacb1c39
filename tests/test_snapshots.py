"""Snapshots: immutable, whole, told apart by their fingerprint, and on disk either whole or not at all."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainenv import snapshots
from trainenv.snapshots import capture, expand, fingerprint, load, save
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
        return isinstance(two, Tensor) and one.dtype == two.dtype and one.shape == two.shape and bits(one) == bits(two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return isinstance(two, list) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or (one != one and two != two))


def state() -> dict[str, Any]:
    return {
        "model": {"weight": torch.arange(6.0).reshape(2, 3), "flag": torch.tensor([True, False])},
        "optimizer": {"state": {"0": {"step": torch.tensor(3.0), "moments": [torch.ones(2), torch.zeros(0)]}}, "lr": 0.1},
        "words": ["a", None, True, 1, 1.0, {"deep": [1.5, "x"]}],
        "seed": 2**63 - 1,
        "empty": {"dict": {}, "list": []},
    }


tensors = st.builds(made, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.integers(0, 99))
plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
names = st.text("abcdef._0", min_size=1, max_size=4)
nested = st.recursive(
    plain | tensors, lambda below: st.lists(below, max_size=3) | st.dictionaries(names, below, max_size=3), max_leaves=12
)
states = st.dictionaries(names, nested, max_size=4)


# ── capture and expand ──────────────────────────────────────────────────────────────────────────────────────────────


@given(state=states, step=st.integers(0, 10**9))
@settings(max_examples=150)
def test_expand_undoes_capture(state: dict[str, Any], step: int) -> None:
    snapshot = capture(step, state)
    assert snapshot.step == step
    assert same(expand(snapshot), state)
    json.dumps(snapshot.state)


def test_tuples_become_lists_and_keys_become_text() -> None:
    assert expand(capture(0, {"betas": (0.9, 0.95), "state": {0: {"x": 1}}})) == {"betas": [0.9, 0.95], "state": {"0": {"x": 1}}}


def test_flat_names() -> None:
    snapshot = capture(0, {"model": {"w.x": torch.ones(1)}, "clip": {"state": [torch.ones(2), torch.ones(3)]}})
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
    empty = {"a": torch.zeros(0), "b": torch.zeros(0, 4), "c": torch.zeros(0, dtype=torch.int64), "d": torch.zeros(0)}
    snapshot = capture(0, empty)
    assert len(snapshot.tensors) == 4
    assert same(expand(snapshot), empty)


def test_temporaries_of_equal_values_stay_apart() -> None:
    snapshot = capture(0, {str(n): torch.zeros(3) for n in range(5)})
    assert len(snapshot.tensors) == 5


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, torch.float32])
def test_what_is_no_state_is_named(value: Any) -> None:
    with pytest.raises(UserError, match=f"the state 'a/b/0' must be tensors, numbers, .* found {type(value).__name__}"):
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
    assert fingerprint(capture(0, {"a": one, "b": two})) != fingerprint(capture(0, {"a": two, "b": one}))
    assert fingerprint(capture(0, {"a": one})) != fingerprint(capture(0, {"b": one}))


def test_what_is_left_out_does_not_count() -> None:
    one, two = state(), state()
    two["ledger"] = {"main": 3.0, "counts": torch.ones(3)}
    assert fingerprint(capture(0, one)) != fingerprint(capture(0, two))
    assert fingerprint(capture(0, one)) == fingerprint(capture(0, two), leave_out=("ledger",))
    three = {**state(), "ledger_too": torch.ones(3)}
    assert fingerprint(capture(0, one)) != fingerprint(capture(0, three), leave_out=("ledger",))
    nested_name = {**state(), "model": {**state()["model"], "ledger": 1}}
    assert fingerprint(capture(0, one)) != fingerprint(capture(0, nested_name), leave_out=("ledger",))


@given(state=states)
@settings(max_examples=50)
def test_fingerprints_survive_the_disk(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = capture(1, state)
    assert fingerprint(load(save(snapshot, tmp_path_factory.mktemp("s") / "s"))) == fingerprint(snapshot)


# ── disk ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_tensor_round_trips(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    original = {"t": made(dtype, shape)}
    assert same(expand(load(save(capture(5, original), tmp_path / "s.safetensors"))), original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_nan_payloads_infinities_and_signs_round_trip(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 3e38]).to(dtype)
    if dtype == torch.float32:
        values = torch.cat([values, torch.tensor([0x7FC12345, -0x3EDCBB], dtype=torch.int32).view(torch.float32)])
    assert same(expand(load(save(capture(0, {"t": values}), tmp_path / "s"))), {"t": values})


@given(state=states, step=st.integers(0, 2**62))
@settings(max_examples=60)
def test_anything_round_trips(state: dict[str, Any], step: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = capture(step, state)
    again = load(save(snapshot, tmp_path_factory.mktemp("s") / "s"))
    assert again.step == step
    assert same(expand(again), state)


def test_aliases_survive_the_disk(tmp_path: Path) -> None:
    weight = torch.randn(2, 2)
    expanded = expand(load(save(capture(0, {"a": weight, "b": weight}), tmp_path / "s")))
    assert expanded["a"] is expanded["b"]


def test_save_makes_the_folder_and_returns_the_path(tmp_path: Path) -> None:
    path = save(capture(0, state()), str(tmp_path / "deep" / "er" / "s.safetensors"))
    assert path == tmp_path / "deep" / "er" / "s.safetensors"
    assert [p.name for p in path.parent.iterdir()] == ["s.safetensors"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(capture(1, {"x": torch.zeros(1000)}), tmp_path / "s")
    save(capture(2, {"x": torch.ones(2)}), tmp_path / "s")
    assert same(expand(load(tmp_path / "s")), {"x": torch.ones(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_loaded_snapshot_outlives_its_file(tmp_path: Path) -> None:
    save(capture(1, {"x": torch.arange(1000.0)}), tmp_path / "s")
    loaded = load(tmp_path / "s")
    save(capture(2, {"x": torch.zeros(1000)}), tmp_path / "s")
    (tmp_path / "s").unlink()
    assert torch.equal(loaded.tensors["x"], torch.arange(1000.0))


@pytest.mark.parametrize("fails", ["fsync", "replace", "serialise"])
def test_a_failing_write_leaves_the_old_file_and_no_other(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(capture(1, {"x": torch.zeros(3)}), tmp_path / "s")
    before = (tmp_path / "s").read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    if fails == "fsync":
        monkeypatch.setattr(snapshots.os, "fsync", fail)
    elif fails == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(safetensors.torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save(capture(2, {"x": torch.ones(3)}), tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("content", [b"", b"short", b"\x00" * 64, b"\xff" * 64, b"not a snapshot, only some text of some length"])
def test_not_a_snapshot(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(UserError, match=r"is not a readable snapshot .*; take an earlier one"):
        load(tmp_path / "s")


def test_torn_anywhere(tmp_path: Path) -> None:
    whole = save(capture(1, state()), tmp_path / "s").read_bytes()
    for length in [0, 4, 8, 20, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "s").write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a readable snapshot"):
            load(tmp_path / "s")


@pytest.mark.parametrize("where", [lambda folder: folder / "gone", lambda folder: folder])
def test_no_such_snapshot(where: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a snapshot at .* found no file; give the path that `save` returned"):
        load(where(tmp_path))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "trainenv snapshot 0", "step": "1", "state": "{}"}])
def test_a_file_that_is_not_ours(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "s", metadata)
    with pytest.raises(UserError, match="no snapshot of this version: expected format 'trainenv snapshot 1', found"):
        load(tmp_path / "s")


def test_no_pickle(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "s")
    with pytest.raises(UserError, match="not a readable snapshot"):
        load(tmp_path / "s")


def test_tensors_of_finds_every_one_in_order() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    found = list(snapshots.tensors_of({"a": [one, {"b": two}], "c": (three, 4, "x", None)}))
    assert [id(t) for t in found] == [id(one), id(two), id(three)]


def test_nbytes() -> None:
    assert Snapshot(0, {"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros(5, dtype=torch.bool)}, {}).nbytes == 29
