"""Snapshots of one run hold once what has not changed between them: told by the bits, and kept alive by their owner alone."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainenv.envs.training import TrainingEnv
from trainenv.run import TrainingRun
from trainenv.training import snapshots
from trainenv.training.snapshots import capture, fingerprint, view
from trainenv.types import Snapshot, UserError

SMALL: dict[str, Any] = {
    "steps": 30,
    "batch_size": 4,
    "model": {"width": 32, "layers": 2, "heads": 2, "context": 32},
    "schedule.warmup": 5,
    "validation": {"every": 0, "sequences": 4},
    "monitor": {"block": 5, "probe_every": 3},
}
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def made(**settings: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", {**SMALL, **settings})


def shared(one: Snapshot, two: Snapshot) -> set[str]:
    """Names under which two snapshots hold the very same memory."""
    return {
        name
        for name, t in one.tensors.items()
        if name in two.tensors and t.data_ptr() == two.tensors[name].data_ptr()
    }


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages under some tensors."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def everything() -> list[Tensor]:
    """Return all tensors on the CPU, without those that torch.compile traces with: they are fake."""
    gc.collect()
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), Tensor)
        and type(thing).__name__ != "FakeTensor"
        and thing.device.type == "cpu"
    ]


# ── by content, to the bit ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 3, 1000, 8191, 70_001, 400_000])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_the_same_bits_are_held_once(dtype: torch.dtype, size: int) -> None:
    values = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(size)).to(dtype)
    first = capture(0, {"x": values})
    assert capture(1, {"x": values.clone()}, first).tensors["x"] is first.tensors["x"]
    for place in {0, size // 2, size - 1} if size else ():
        changed = values.clone()
        changed[place] = changed[place] == 0
        second = capture(1, {"x": changed}, first)
        assert torch.equal(second.tensors["x"], changed)
        assert second.tensors["x"].data_ptr() != first.tensors["x"].data_ptr()


@pytest.mark.parametrize("size", [2, 50_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("was", "now", "same"),
    [(math.nan, math.nan, True), (0.0, -0.0, False), (math.inf, -math.inf, False)],
)
def test_bits_are_compared_and_not_values(
    was: float, now: float, same: bool, dtype: torch.dtype, size: int
) -> None:
    first = capture(0, {"x": torch.full((size,), was, dtype=dtype)})
    again = torch.full((size,), was, dtype=dtype)
    again[-1] = now
    second = capture(1, {"x": again}, first)
    assert (second.tensors["x"] is first.tensors["x"]) is same
    assert fingerprint(second) == fingerprint(capture(1, {"x": again}))


def test_nan_of_other_bits_is_another() -> None:
    bits = torch.tensor([0x7FC00000, 0x7FC12345], dtype=torch.int32)
    first = capture(0, {"x": bits[:1].view(torch.float32)})
    assert (
        capture(0, {"x": bits[1:].view(torch.float32)}, first).tensors["x"]
        is not first.tensors["x"]
    )


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(()), torch.zeros(1)),
    ],
)
def test_what_is_of_another_kind_is_not_shared(was: Tensor, now: Tensor) -> None:
    first = capture(0, {"x": was})
    found = capture(1, {"x": now}, first).tensors["x"]
    assert (found.dtype, found.shape) == (now.dtype, now.shape)
    assert found is not first.tensors["x"]


@pytest.mark.parametrize("side", [3, 300])
def test_layout_does_not_matter(side: int) -> None:
    square = torch.randn(side, side)
    first = capture(0, {"x": square.T})
    assert capture(1, {"x": square.T}, first).tensors["x"] is first.tensors["x"]
    assert capture(1, {"x": square}, first).tensors["x"] is not first.tensors["x"]


def test_complex_numbers_are_held_too() -> None:
    values = torch.randn(5, dtype=torch.complex128)
    first = capture(0, {"x": values})
    assert torch.equal(capture(0, {"x": values}, first).tensors["x"], values)


def test_names_that_come_and_go_and_tied_weights() -> None:
    weight = torch.randn(4, 3)
    first = capture(0, {"a": weight, "gone": torch.ones(2)})
    second = capture(1, {"a": weight, "b": weight, "new": torch.zeros(2)}, first)
    assert set(second.tensors) == {"a", "new"}
    assert shared(first, second) == {"a"}
    apart = capture(2, {"a": weight, "b": weight.clone()}, second)
    assert set(apart.tensors) == {"a", "b"}


def test_a_view_holds_the_very_tensors() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    seen = view(3, {"w": weight, "t": weight.T, "n": 1})
    assert {t.data_ptr() for t in seen.tensors.values()} == {weight.data_ptr()}
    assert fingerprint(seen) == fingerprint(capture(3, {"w": weight, "t": weight.T, "n": 1}))


# ── of a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_held_twice_where_nothing_changed() -> None:
    run = made()
    run.advance(4)
    first, second = run.snapshot(), run.snapshot()
    assert first is not second
    assert shared(first, second) == set(first.tensors)


def test_after_a_step_only_what_did_not_change_is_shared() -> None:
    run = made()
    frozen = next(name for name, _ in run.model.named_parameters() if name.endswith("ln_f.weight"))
    run.model.get_parameter(frozen).requires_grad_(False)
    run.advance(4)
    first = run.snapshot()
    before = fingerprint(first)
    run.advance(1)
    second = run.snapshot()
    assert f"model/{frozen}" in shared(first, second)
    assert shared(first, second) < set(first.tensors)
    moved = [
        f"model/{name}"
        for name, p in run.model.named_parameters()
        if name != frozen and p.requires_grad
    ]
    assert not shared(first, second) & {
        name for name in moved if name in second.tensors and "ln_" not in name
    }
    assert fingerprint(first) == before


def test_a_write_past_the_version_counter_is_seen() -> None:
    run = made()
    first = run.snapshot()
    name, parameter = next(iter(run.model.named_parameters()))
    version = parameter._version
    parameter.data.view(-1)[-1] += 1
    assert parameter._version == version
    second = run.snapshot()
    assert f"model/{name}" not in shared(first, second)
    assert torch.equal(second.tensors[f"model/{name}"], parameter)


def test_a_snapshot_that_nobody_wants_goes() -> None:
    run = made()
    run.advance(2)
    snapshot = run.snapshot()
    run.restore(snapshot)
    fork = run.fork()
    gone, tensor = weakref.ref(snapshot), weakref.ref(next(iter(snapshot.tensors.values())))
    del snapshot
    gc.collect()
    assert gone() is None
    assert tensor() is None
    assert fork.fingerprint() == run.fingerprint()
    assert run.snapshot().nbytes > 0


def test_a_restored_snapshot_is_shared_with_even_after_others_went() -> None:
    run, other = made(), made()
    run.advance(2)
    carried = run.snapshot()
    other.restore(carried)
    other.snapshot()  # taken, and gone at once
    assert shared(carried, other.snapshot()) == set(carried.tensors)
    assert shared(carried, other.fork().snapshot()) == set(carried.tensors)


def test_many_branches_of_one_snapshot_hold_it_once() -> None:
    run = made()
    run.advance(3)
    before = held(everything())
    parent = run.snapshot()
    size = held(parent.tensors.values())
    branches, most = [], 0
    for _ in range(6):
        run.restore(parent)
        branches.append(run.snapshot())  # where the branch starts: the parent itself
        run.advance(2)
        most = max(most, held(everything()) - before)
    assert held(t for s in [parent, *branches] for t in s.tensors.values()) == size
    # Next to the live run there is one copy, and what a step leaves: more, or less than before.
    assert 0.99 * size <= most < 1.3 * size
    assert before >= size * 0.9  # the live run: it was there before


def test_restoring_allocates_no_second_state() -> None:
    run = made()
    run.advance(3)
    parent = run.snapshot()

    def addresses() -> set[int]:
        state = [value for entry in run.optimizer.state.values() for value in entry.values()]
        return {t.data_ptr() for t in [*run.model.parameters(), *state]}

    before, mark = addresses(), fingerprint(parent)
    for _ in range(3):
        run.advance(2)
        run.restore(parent)
        assert addresses() == before
    assert not before & {t.data_ptr() for t in parent.tensors.values()}
    run.advance(1)
    assert fingerprint(parent) == mark


def test_fork_and_fingerprint_clone_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made()
    run.advance(3)
    expected = run.fingerprint()

    def capture(*_: Any) -> None:
        raise AssertionError("captured")

    monkeypatch.setattr(snapshots, "capture", capture)
    fork = run.fork()
    assert fork.fingerprint() == run.fingerprint() == expected
    fork.advance(2)
    assert run.fingerprint() == expected


def test_snapshots_of_the_environment_share_too() -> None:
    env = TrainingEnv("tiny", {**SMALL, "environment.decision_steps": 5})
    env.reset(seed=0)
    first, second = env.snapshot(), env.snapshot()
    assert shared(first, second) == set(first.tensors)
    assert first.state["environment"] == second.state["environment"]


def test_names_beside_the_run_s_own_are_checked() -> None:
    run = made()
    assert run.snapshot({"mine": {"x": [1]}}).state["mine"] == {"x": [1]}
    with pytest.raises(UserError, match="found model, rng; rename them"):
        run.snapshot({"rng": 1, "model": 2, "mine": 3})


def test_snapshots_can_be_copied_and_replaced() -> None:
    run = made()
    snapshot = run.snapshot()
    twin = copy.deepcopy(snapshot)
    assert fingerprint(twin) == fingerprint(snapshot)
    assert not shared(twin, snapshot)
    assert snapshot.tier == "exact"


# ── on a GPU ────────────────────────────────────────────────────────────────────────────────────────────────────────


@gpu
def test_a_gpu_s_tensors_go_to_pinned_memory_and_back() -> None:
    run = made(device="cuda")
    run.advance(3)
    snapshot = run.snapshot()
    assert all(t.device.type == "cpu" for t in snapshot.tensors.values())
    assert all(
        t.is_pinned()
        for name, t in snapshot.tensors.items()
        if name.startswith(("model/", "optimizer/state"))
    )
    assert fingerprint(snapshot, ("ledger", "numerics", "statistics")) == run.fingerprint()
    expected = [repr(t.loss) for t in run.advance(4)]
    run.restore(snapshot)
    assert fingerprint(snapshot, ("ledger", "numerics", "statistics")) == run.fingerprint()
    fork, other = run.fork(), made(device="cuda")
    other.restore(snapshot)
    for branch in (run, fork, other):
        assert all(
            v.device.type == "cuda"
            for entry in branch.optimizer.state.values()
            for v in entry.values()
        )
        assert [float(loss) for loss in expected] == pytest.approx(
            [t.loss for t in branch.advance(4)], rel=1e-3
        )
