"""A run is a value: going on from a snapshot, in a fork or in another process gives the same bits as going on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainenv.checkpoints.file import read, write
from trainenv.config.presets import find, read_yaml
from trainenv.run import TrainingRun
from trainenv.training import snapshots
from trainenv.types import Intervention, Snapshot, Telemetry

# An index that speaks, fires and flags within a few steps, so that its state matters here.
NERVOUS = read_yaml(find("uncertainty")) | {
    "window": 16,
    "min_history": 4,
    "threshold": 0.2,
    "single": 0.5,
    "lenient": 1.0,
    "refractory": 3,
}
SMALL: dict[str, Any] = {
    "steps": 60,
    "batch_size": 4,
    "block_steps": 4,
    "reset_warmup": 6,
    "model": {"width": 32, "layers": 1, "heads": 2, "context": 32},
    "schedule.warmup": 5,
    "validation": {"every": 0, "sequences": 4},
    "monitor": {"block": 5, "probe_every": 3, "uncertainty": NERVOUS},
    "interventions.lr_bounds": [1e-9, 1e9],
}
SPAM = {"clip": {"policy": "spam", "options": {"spam": {"interval": 6, "warmup": 2}}}}
ARC = {"clip.policy": "arc"}
EVENTS = [
    {"at": 9, "kind": "random_tokens", "steps": 3},
    {"at": 10, "kind": "lr_spike", "steps": 2, "size": 12},
    {"at": 12, "kind": "long_sequence"},
    {"at": 13, "kind": "rare_tokens", "size": 0.5},
]
STRESSED = {
    "stressors": {
        "rare_tokens": 0.2,
        "long_sequence": 0.2,
        "artefacts": 0.2,
        "block_shuffle": 0.9,
        "harsh_warmup_steps": 9,
        "planted": EVENTS,
    }
}
Trace = tuple[list[str], str]


def made(settings: Mapping[str, Any] | None = None) -> TrainingRun:
    return TrainingRun.from_config("tiny", {**SMALL, **(settings or {})})


def go(run: TrainingRun, steps: int) -> Trace:
    """Return the exact telemetry of the steps, NaN equal to NaN, and the fingerprint after them."""
    return [repr(t) for t in run.advance(steps)], run.fingerprint()


def leave(run: TrainingRun) -> None:
    """No change."""


def assert_exact(run: TrainingRun, steps: int, then: Callable[[TrainingRun], None] = leave) -> None:
    """From here on, the run itself, a fork, the run restored and another run restored give the same."""
    snapshot, fork = run.snapshot(), run.fork()
    mark = snapshots.fingerprint(snapshot)
    here = run.fingerprint()
    assert fork.fingerprint() == here
    then(run)
    expected = go(run, steps)
    assert len(expected[0]) == steps
    assert expected[1] != here
    then(fork)
    assert go(fork, steps) == expected
    other = TrainingRun.from_config(run.config)
    for restored in (run, other):
        restored.restore(snapshot)
        assert restored.fingerprint() == here
        then(restored)
        assert go(restored, steps) == expected
    assert snapshots.fingerprint(snapshot) == mark


# ── every way to train ──────────────────────────────────────────────────────────────────────────────────────────────

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation 2": {"accumulation": 2},
    "accumulation 4": {"accumulation": 4},
    "dropout": {"model.dropout": 0.1},
    "dropout and accumulation": {"model.dropout": 0.1, "accumulation": 2},
    "none": {"clip.policy": "none"},
    "none with a fixed norm": {"clip": {"policy": "none", "options": {"none": {"max_norm": 0.5}}}},
    "zclip": {"clip": {"policy": "zclip", "options": {"zclip": {"warmup": 4}}}},
    "arc over steps": {"clip": {"policy": "arc", "options": {"arc": {"window": 4}}}},
    "arc over micro-batches": {**ARC, "accumulation": 4},
    "spam": SPAM,
    "spam and accumulation": {**SPAM, "accumulation": 2},
    "every stressor": STRESSED,
    "every stressor and dropout": {**STRESSED, "model.dropout": 0.1},
    "bf16": {"precision": "bf16"},
    "bf16, arc and dropout": {"precision": "bf16", **ARC, "accumulation": 2, "model.dropout": 0.1},
    "fp16": {"precision": "fp16"},
    "fp16 and arc over micro-batches": {"precision": "fp16", **ARC, "accumulation": 2},
    "fp16 and spam": {"precision": "fp16", **SPAM},
    "activation checkpointing": {"model.activation_checkpointing": True},
    "activation checkpointing and dropout": {
        "model.activation_checkpointing": True,
        "model.dropout": 0.1,
    },
    "activation checkpointing by segments": {
        "model.activation_checkpointing": "sqrt",
        "model.dropout": 0.1,
    },
    "reversible": {"model.blocks": "reversible"},
    "reversible, bf16, dropout and accumulation": {
        "model.blocks": "reversible",
        "model.dropout": 0.1,
        "precision": "bf16",
        "accumulation": 2,
    },
    "t5": {"model.architecture": "t5"},
    "t5, bf16, dropout and accumulation": {
        "model.architecture": "t5",
        "model.dropout": 0.1,
        "precision": "bf16",
        "accumulation": 2,
    },
    "t5 and every stressor": {"model.architecture": "t5", **STRESSED},
    "t5 and arc over micro-batches": {"model.architecture": "t5", **ARC, "accumulation": 4},
    "wsd": {"schedule": {"kind": "wsd", "warmup": 3, "decay_share": 0.9}},
    "constant": {"schedule.kind": "constant"},
    "stable start": {"model.init": "stable"},
    "monitor off": {"monitor.enabled": False},
    "probe off": {"monitor.probe_every": 0},
    "read every step": {"monitor.block": 1},
    "deterministic": {"deterministic": True},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_going_on_from_a_snapshot_is_going_on(name: str) -> None:
    run = made(CONFIGS[name])
    run.advance(8)
    assert_exact(run, 7)


@pytest.mark.parametrize("at", [0, 1, 59, 61])
def test_at_the_start_and_past_the_end(at: int) -> None:
    run = made({"model.dropout": 0.1})
    run.advance(at)
    assert_exact(run, 3)


def test_what_the_cases_are_for_happens() -> None:
    run = made(SPAM)
    run.advance(8)
    since = [t.steps_since_reset for t in run.advance(7)]
    assert since.count(1) == 1  # at step 12
    run = made(STRESSED)
    names = {name for t in run.advance(15)[8:] for name in t.stressors}
    assert names == {
        "rare_tokens",
        "long_sequence",
        "artefacts",
        "block_shuffle",
        "random_tokens",
        "lr_spike",
    }
    run = made()
    window = run.advance(15)
    assert run.flagged
    assert any(t.reading.fired for t in window[8:])
    assert all(repr(t.loss_scale) == "nan" for t in window)
    run = made({"precision": "fp16"})
    assert all(t.loss_scale > 1 for t in run.advance(4))


@pytest.mark.parametrize("settings", [{}, {"model.dropout": 0.1}])
@pytest.mark.parametrize("at", [9, 15])
def test_within_an_epoch_and_across_its_edge(
    tmp_path: Path, at: int, settings: dict[str, Any]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{place} squared is {place**2}.\n" for place in range(170)))
    shape = {"model.context": 16, "batch_size": 16}
    shape |= {"monitor.probe_sequences": 1, "validation.sequences": 2}
    run = made({"corpus": {"name": "text", "path": str(text)}, **shape, **settings})
    epoch: int = run._batches.epoch_steps  # type: ignore[attr-defined]
    assert 6 <= epoch <= 12
    run.advance(at)
    assert_exact(run, epoch - 2, lambda run: run.apply(Intervention(data_reorder=True)))


# ── steered runs ────────────────────────────────────────────────────────────────────────────────────────────────────

STEERS: dict[str, Intervention] = {
    "lr": Intervention(lr_scale=0.8),
    "weight decay": Intervention(weight_decay_scale=2.0),
    "to none": Intervention(clip="none"),
    "to arc": Intervention(clip="arc"),
    "to spam": Intervention(clip="spam"),
    "momentum reset": Intervention(momentum_reset=True),
    "reorder": Intervention(data_reorder=True),
    "skip": Intervention(skip_batch=True),
    "everything": Intervention(
        lr_scale=1.1,
        weight_decay_scale=0.5,
        clip="arc",
        momentum_reset=True,
        data_reorder=True,
        skip_batch=True,
    ),
}


def steered(name: str) -> Callable[[TrainingRun], None]:
    def steer(run: TrainingRun) -> None:
        if STEERS[name].skip_batch:
            run.flag((run.step + 2, run.step + 4, run.step + 5))
        run.apply(STEERS[name])

    return steer


@pytest.mark.parametrize("name", STEERS)
def test_an_intervention_before_the_snapshot(name: str) -> None:
    run = made({"model.dropout": 0.1, "clip.options": SPAM["clip"]["options"]})
    run.advance(7)
    steered(name)(run)
    run.advance(2)
    assert_exact(run, 7)


@pytest.mark.parametrize("name", STEERS)
def test_an_intervention_just_after_the_snapshot(name: str) -> None:
    run = made({"model.dropout": 0.1, "clip.options": SPAM["clip"]["options"]})
    run.advance(7)
    assert_exact(run, 8, steered(name))
    plain = made({"model.dropout": 0.1, "clip.options": SPAM["clip"]["options"]})
    plain.advance(7 + 8)
    assert plain.fingerprint() != run.fingerprint()


def test_one_after_another() -> None:
    run = made({**STRESSED, "clip.options": SPAM["clip"]["options"]})
    for name in STEERS:
        steered(name)(run)
        run.advance(2)
    run.spend(5)
    assert_exact(run, 8, lambda run: [steered(name)(run) for name in STEERS] and None)


def test_a_spent_budget_and_a_rewind_are_part_of_the_value() -> None:
    run = made()
    run.advance(6)
    back = run.snapshot()
    run.advance(6)
    run.flag([8, 9])
    run.rewind(back)
    run.spend(7)
    assert_exact(run, 20, lambda run: run.apply(Intervention(skip_batch=True)))


@pytest.mark.parametrize(
    "what", ["step", "flag", "spend", "lr", "decay", "clip", "reset", "reorder", "weight", "rng"]
)
def test_the_fingerprint_covers_what_the_future_depends_on(what: str) -> None:
    run = made({"model.dropout": 0.1})
    run.advance(3)
    before = run.fingerprint()
    assert run.fork().fingerprint() == before
    changes: dict[str, Callable[[], Any]] = {
        "step": lambda: run.advance(1),
        "flag": lambda: run.flag([50]),
        "spend": lambda: run.spend(1),
        "lr": lambda: run.apply(Intervention(lr_scale=0.9)),
        "decay": lambda: run.apply(Intervention(weight_decay_scale=0.5)),
        "clip": lambda: run.apply(Intervention(clip="arc")),
        "reset": lambda: run.apply(Intervention(momentum_reset=True)),
        "reorder": lambda: run.apply(Intervention(data_reorder=True)),
        "weight": lambda: next(run.model.parameters()).data.view(-1)[0].add_(1e-3),
        "rng": lambda: run._rng.__init__(7, run.device),  # type: ignore[misc]
    }
    changes[what]()
    assert run.fingerprint() != before


def test_the_fingerprint_leaves_out_what_was_spent() -> None:
    run = made()
    run.advance(3)
    before = run.fingerprint()
    run.evaluate()
    run.fork().advance(1)
    assert run.fingerprint() == before


# ── pieces, forks among forks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings", [{}, {**SPAM, "model.dropout": 0.1}, {**STRESSED, "accumulation": 1}]
)
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [0, 3, 7, 0, 10], [19, 1]])
def test_pieces_do_not_matter(pieces: list[int], settings: dict[str, Any]) -> None:
    run, other = made(settings), made({**settings, "monitor.block": 3})
    seen = [repr(t) for piece in pieces for t in run.advance(piece)]
    assert (seen, run.fingerprint()) == go(other, 20)


def test_forks_interleaved() -> None:
    run = made({"model.dropout": 0.1, **SPAM})
    run.advance(5)
    alone = go(run.fork(), 12)
    forks = [run.fork() for _ in range(4)]
    other = run.fork()
    other.apply(Intervention(lr_scale=5.0, clip="none"))
    seen: list[list[str]] = [[] for _ in forks]
    for turn in range(12):
        for fork, telemetry in zip(forks, seen):
            telemetry += [repr(t) for t in fork.advance(1)]
        if turn % 3 == 0:
            other.advance(2)
            forks[0].evaluate()
    for fork, telemetry in zip(forks, seen):
        assert (telemetry, fork.fingerprint()) == alone
    assert go(run, 12) == alone
    assert other.fingerprint() != alone[1]


def test_a_fork_of_a_fork() -> None:
    run = made({"model.dropout": 0.1})
    run.advance(4)
    child = run.fork()
    child.advance(3)
    run.advance(3)
    assert go(child.fork().fork(), 4) == go(run, 4)


# ── nothing is shared ───────────────────────────────────────────────────────────────────────────────────────────────


def poison(fork: TrainingRun) -> None:
    with torch.no_grad():
        next(fork.model.parameters()).fill_(float("nan"))


@pytest.mark.parametrize(
    "ruin",
    [poison, lambda fork: fork.apply(Intervention(lr_scale=1e8, clip="none"))],
    ids=["NaN weights", "learning rate"],
)
@pytest.mark.parametrize("settings", [{}, {"precision": "fp16", "model.dropout": 0.1}, SPAM])
def test_a_fork_that_diverges_leaves_its_parent_alone(
    ruin: Callable[[TrainingRun], None], settings: dict[str, Any]
) -> None:
    run, twin = made(settings), made(settings)
    run.advance(6)
    twin.advance(6)
    before = run.fingerprint()
    fork = run.fork()
    ruin(fork)
    fork.advance(8)
    assert not fork.evaluate() < 20
    assert run.fingerprint() == before
    assert go(run, 8) == go(twin, 8)


def test_a_diverged_run_is_a_value_too() -> None:
    run = made({"clip.policy": "none"})
    run.advance(3)
    poison(run)
    run.advance(3)
    assert_exact(run, 3, lambda run: run.flag([run.step]))


def test_a_snapshot_never_changes() -> None:
    run = made({"model.dropout": 0.1, **SPAM})
    run.advance(6)
    snapshot = run.snapshot()
    mark = snapshots.fingerprint(snapshot)
    run.advance(3)
    assert snapshots.fingerprint(snapshot) == mark
    run.restore(snapshot)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
        for entry in run.optimizer.state.values():
            for value in entry.values():
                value.fill_(9)
    for group in run.optimizer.param_groups:
        group["lr"] = 1e9
    assert snapshots.fingerprint(snapshot) == mark
    fork = made({"model.dropout": 0.1, **SPAM})
    run.restore(snapshot)
    fork.restore(snapshot)
    assert run.fingerprint() == fork.fingerprint()
    run.apply(Intervention(lr_scale=0.5, momentum_reset=True, clip="arc", data_reorder=True))
    run.flag([40])
    run.advance(9)
    assert snapshots.fingerprint(snapshot) == mark
    fork.advance(9)
    assert snapshots.fingerprint(snapshot) == mark
    run.restore(snapshot)
    assert go(run, 9)[1] == fork.fingerprint()


def test_a_snapshot_shares_no_memory_with_the_run() -> None:
    run = made()
    run.advance(2)
    snapshot = run.snapshot()
    run.restore(snapshot)
    live = {p.data_ptr() for p in run.model.parameters()}
    live |= {v.data_ptr() for entry in run.optimizer.state.values() for v in entry.values()}
    assert not live & {t.data_ptr() for t in snapshot.tensors.values()}
    fork = run.fork()
    assert not {p.data_ptr() for p in fork.model.parameters()} & live
    assert {id(p) for group in fork.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in fork.model.parameters()
    }


def surroundings() -> list[bytes]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [
        bytes(torch.get_rng_state().tolist()),
        repr(random.getstate()).encode(),
        repr((name, np.asarray(keys).tolist(), rest)).encode(),
        repr((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())).encode(),
        repr(
            (torch.is_grad_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        ).encode(),
    ]


def test_the_surroundings_are_left_as_they_were() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = surroundings()
        run = made({"model.dropout": 0.1, "threads": 1, "deterministic": True})
        assert surroundings() == before
        run.advance(4)
        fork = run.fork()
        fork.advance(3)
        run.evaluate()
        run.restore(fork.snapshot())
        run.fingerprint()
        assert surroundings() == before
    finally:
        torch.set_num_threads(threads)


def test_the_surroundings_do_not_matter() -> None:
    first = made({"model.dropout": 0.1})
    expected = go(first, 6)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    run = made({"model.dropout": 0.1})
    seen: list[str] = []
    for _ in range(6):
        torch.rand(3)
        random.random()
        seen += [repr(t) for t in run.advance(1)]
    assert (seen, run.fingerprint()) == expected


# ── on disk, in another process ─────────────────────────────────────────────────────────────────────────────────────


def test_the_file_holds_the_whole_value(tmp_path: Path) -> None:
    run = made({"model.dropout": 0.1})
    run.advance(5)
    snapshot = run.snapshot()
    write(snapshot, tmp_path / "run.ptz")
    loaded = read(tmp_path / "run.ptz")
    assert isinstance(loaded, Snapshot)
    assert snapshots.fingerprint(loaded) == snapshots.fingerprint(snapshot)
    expected = go(run, 5)
    run.restore(loaded)
    assert go(run, 5) == expected


def test_traces_tell_all_of_the_telemetry() -> None:
    (telemetry,) = made().advance(1)
    assert all(f"{f.name}=" in repr(telemetry) for f in fields(Telemetry))
