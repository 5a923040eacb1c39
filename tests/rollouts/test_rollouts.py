"""Rollouts: real futures of a run beside each other, which leave it as it was; and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import run_settings
from tests.support.bigram import Bigram, raises, tokens
from trainenv import planners
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import TrainingConfig
from trainenv.interventions import ActionCodec
from trainenv.planners import Score
from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.rollouts.folded import Folded
from trainenv.rollouts.group import InTurn
from trainenv.run import TrainingRun
from trainenv.training.history import history_of
from trainenv.training.ledger import Ledger
from trainenv.types import (
    Budget,
    Intervention,
    Measure,
    Outcome,
    PlanningProblem,
    Snapshot,
    Telemetry,
    UserError,
)

SMALL: dict[str, Any] = run_settings.SMALL | {"block_steps": 2}
LOWER, HIGHER = (Intervention(lr_scale=0.5),), (Intervention(lr_scale=1.1),)
RESET = (Intervention(momentum_reset=True, clip="zclip"),)


def toy(
    steps: int = 60,
    lr: float = 1e-2,
    taken: int = 8,
    trouble: Callable[[Tensor], None] = lambda weight: None,
    **more: Any,
) -> TrainingRun:
    """A run of a few thousand steps a second, some steps in."""
    model = Bigram(trouble)
    quick = {
        "monitor": {"block": 4, "probe_every": 0},
        "schedule": {"warmup": 0},
        "block_steps": 2,
        "clip": {"policy": "none"},
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    config = TrainingConfig(**{"name": "toy", "steps": steps} | quick | more)
    run = TrainingRun(model, optimizer, tokens, config, validation=[tokens(10**6)])
    run.advance(taken)
    return run


@pytest.fixture(scope="module")
def tiny() -> TrainingRun:
    """A GPT-2 some steps in; tests fork it."""
    run = TrainingRun.from_config("tiny", SMALL)
    run.advance(10)
    return run


def own(run: TrainingRun) -> TrainingRun:
    """A fork that charges a ledger of its own, as a run does."""
    fork = run.fork("main")
    fork.ledger = Ledger()
    fork.ledger.charge("main", 10 * run.flops_ahead)
    return fork


def state(run: TrainingRun) -> tuple[Any, ...]:
    """Everything of a run but the FLOPs of branches."""
    return run.fingerprint(), run.ledger["main"], run.ledger["rewound"], run.horizon, run.applied


def same(one: Sequence[Outcome], two: Sequence[Outcome]) -> bool:
    return repr(one) == repr(two)  # NaN equals NaN


# ── the run is left as it is ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("measure", ["horizon", "annealed", "final"])
def test_the_run_is_only_read(tiny: TrainingRun, fold: bool, measure: Measure) -> None:
    run = own(tiny)
    before = state(run)
    outcomes = Rollouts(run, decision_steps=4, cooldown=3, fold=fold).run(
        [NOTHING, LOWER, RESET], 6, measure=measure
    )
    assert state(run) == before
    assert all(not o.error and not o.diverged and o.looks == (0, 6) for o in outcomes)
    assert [math.isfinite(o.annealed) for o in outcomes] == [measure == "annealed"] * 3
    assert [math.isfinite(o.final) for o in outcomes] == [measure == "final"] * 3
    spent = sum(o.flops for o in outcomes)
    assert spent == pytest.approx(run.ledger["verify"] + run.ledger["evaluate"])
    assert [o.steps for o in outcomes] == [
        6 + {"horizon": 0, "annealed": 3, "final": 104}[measure]
    ] * 3


@pytest.mark.parametrize("sequence", [NOTHING, LOWER, RESET, (*LOWER, *HIGHER)])
def test_the_run_becomes_the_future_to_the_bit(
    tiny: TrainingRun, sequence: tuple[Intervention, ...]
) -> None:
    run, twin = own(tiny), own(tiny)
    rollouts = Rollouts(run, decision_steps=4, evaluate_every=3, fold=False)
    rollouts.run([NOTHING, (Intervention(lr_scale=0.9),), sequence], 7, measure="horizon")
    kept = rollouts.adopt(sequence, 7)
    measured = []
    for place, steps in enumerate((4, 3)):
        twin.apply((*sequence, Intervention())[place])
        measured += twin.advance(steps)
    assert run.fingerprint() == twin.fingerprint()
    assert repr(list(kept)) == repr(measured)
    assert run.ledger["main"] == pytest.approx(twin.ledger["main"])
    run.advance(5)
    twin.advance(5)
    assert run.fingerprint() == twin.fingerprint()


def test_folded_within_rounding_and_deterministic(tiny: TrainingRun) -> None:
    asked = [NOTHING, LOWER, RESET]
    rollouts = [
        Rollouts(own(tiny), decision_steps=4, cooldown=3, fold=fold) for fold in (True, True, False)
    ]
    first, again, alone = (one.run(asked, 9, measure="annealed") for one in rollouts)
    assert same(first, again)
    assert not same(first, alone)  # they were folded
    for one, two in zip(first, alone):
        assert one.validation == pytest.approx(two.validation, rel=1e-4)
        assert one.annealed == pytest.approx(two.annealed, rel=1e-4)
        assert (one.steps, one.looks) == (two.steps, two.looks)
        assert one.flops == pytest.approx(two.flops)


def test_branches_see_the_same_batches_and_draws_others(tiny: TrainingRun) -> None:
    run = own(tiny)
    rollouts = Rollouts(run, decision_steps=4)
    seen = {}
    for draw in (0, 1, 2):
        rollouts.run([NOTHING, LOWER], 10, measure="horizon", draw=draw)
        ours, theirs = (
            [t.data_index for t in rollouts.future(one, 10, draw=draw).telemetry]
            for one in (NOTHING, LOWER)
        )
        assert ours == theirs
        seen[draw] = tuple(ours)
    assert seen[0] == run.upcoming(10)
    assert len(set(seen.values())) == 3


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_going_on_costs_only_what_is_new() -> None:
    run = toy()
    rollouts = Rollouts(run, decision_steps=5, cooldown=4)
    longer = (*LOWER, *HIGHER)
    assert [o.steps for o in rollouts.run([NOTHING, LOWER], 5, measure="horizon")] == [5, 5]
    assert [o.steps for o in rollouts.run([NOTHING, LOWER, longer], 10, measure="horizon")] == [
        5,
        5,
        5,
    ]
    assert [o.steps for o in rollouts.run([NOTHING, LOWER], 10, measure="horizon")] == [0, 0]
    assert rollouts.cost([NOTHING, LOWER, longer], 10, measure="horizon").flops == 0
    assert [o.steps for o in rollouts.run([longer, NOTHING], 10, measure="annealed")] == [4, 4]
    assert [o.steps for o in rollouts.run([longer, NOTHING], 10, measure="annealed")] == [0, 0]
    assert [o.steps for o in rollouts.run([NOTHING], 5, measure="horizon", draw=1)] == [5]
    fresh = Rollouts(run, decision_steps=5, cooldown=4).run([longer], 10, measure="annealed")[0]
    late = rollouts.run([longer], 10, measure="annealed")[0]
    assert (late.annealed, late.validation[-1], late.volatility) == (
        fresh.annealed,
        fresh.validation[-1],
        fresh.volatility,
    )


def test_an_end_that_is_measured_late_is_measured() -> None:
    run = toy(steps=40)
    rollouts = Rollouts(run, decision_steps=5, cooldown=6)
    rollouts.run([NOTHING], 10, measure="horizon")
    assert rollouts.cost([NOTHING], 10, measure="annealed").steps == 6
    annealed = rollouts.run([NOTHING], 10, measure="annealed")[0]
    assert annealed.steps == 6
    assert annealed.annealed < annealed.validation[-1] + 1  # it is a loss
    final = rollouts.run([NOTHING], 10, measure="final")[0]
    assert final.steps == 40 - 8 - 10
    assert math.isnan(final.annealed)
    run.advance(32)
    assert final.final == run.evaluate()


def test_futures_that_differ_only_later_are_trained_and_charged_once() -> None:
    run = toy()
    rollouts, asked = (
        Rollouts(run, decision_steps=10),
        [NOTHING, LOWER, LOWER * 2, (*LOWER, *HIGHER)],
    )
    assert rollouts.cost(asked, 5, measure="horizon").steps == 10
    outcomes = rollouts.run(asked, 5, measure="horizon")
    assert [o.steps for o in outcomes] == [5, 5, 0, 0]
    assert len({o.validation for o in outcomes[1:]}) == 1
    assert sum(o.flops for o in outcomes) == pytest.approx(
        run.ledger["verify"] + run.ledger["evaluate"]
    )


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    calls=st.lists(
        st.tuples(
            st.lists(
                st.lists(st.sampled_from([*NOTHING, *LOWER, *HIGHER]), min_size=1, max_size=3),
                min_size=1,
                max_size=4,
            ),
            st.integers(1, 13),
            st.sampled_from(["horizon", "annealed", "final"]),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=4,
    ),
    every=st.sampled_from([None, 2, 3, 5]),
)
def test_the_cost_is_what_is_spent(calls: list[Any], every: int | None) -> None:
    run = toy(steps=30, taken=4)
    before = run.fingerprint()
    rollouts = Rollouts(run, decision_steps=4, cooldown=3, evaluate_every=every)
    for sequences, steps, measure, draw in calls:
        spent = run.ledger["verify"] + run.ledger["evaluate"]
        price = rollouts.cost(sequences, steps, measure=measure, draw=draw)
        outcomes = rollouts.run(sequences, steps, measure=measure, draw=draw)
        assert sum(o.steps for o in outcomes) == price.steps
        assert sum(o.flops for o in outcomes) == pytest.approx(price.flops)
        assert run.ledger["verify"] + run.ledger["evaluate"] - spent == pytest.approx(price.flops)
        assert rollouts.cost(sequences, steps, measure=measure, draw=draw).flops == 0
        fresh = Rollouts(run, decision_steps=4, cooldown=3).run(
            sequences, steps, measure=measure, draw=draw
        )
        ends = [(o.validation[-1], o.annealed, o.final, o.looks[-1]) for o in outcomes]
        assert repr(ends) == repr(
            [(o.validation[-1], o.annealed, o.final, o.looks[-1]) for o in fresh]
        )
    assert run.fingerprint() == before


def test_probes_are_priced(tiny: TrainingRun) -> None:
    run = own(tiny)
    rollouts = Rollouts(run, decision_steps=4, cooldown=4)
    price = rollouts.cost([NOTHING, LOWER], 7, measure="annealed")
    spent = sum(o.flops for o in rollouts.run([NOTHING, LOWER], 7, measure="annealed"))
    a_probe = 4 * 16 * run.flops_ahead / (4 * 16) / 3
    assert spent * (1 - 1e-9) <= price.flops <= spent + 2 * a_probe


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (lambda: MemoryError("there is none left"), "MemoryError: there is none left"),
        (lambda: RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
        (lambda: ValueError("no such token"), "ValueError: no such token"),
    ],
)
def test_a_branch_that_fails_says_so_and_the_others_go_on(
    raised: Callable[[], Exception], said: str
) -> None:
    run = toy(interventions={"lr_bounds": (0.01, 100.0)}, trouble=raises(raised))
    before = state(run)
    rollouts, fast = Rollouts(run, decision_steps=50, cooldown=5), (Intervention(lr_scale=30.0),)
    outcomes = rollouts.run([NOTHING, fast, LOWER], 10, measure="annealed")
    assert [o.error for o in outcomes] == ["", said, ""]
    assert [math.isfinite(o.annealed) for o in outcomes] == [True, False, True]
    assert state(run) == before
    assert [o.steps for o in outcomes][::2] == [
        15,
        15,
    ]  # trained once, though another failed beside them
    assert sum(o.flops for o in outcomes) == pytest.approx(
        run.ledger["verify"] + run.ledger["evaluate"]
    )
    with pytest.raises(UserError, match="run it first"):
        rollouts.adopt(fast, 10)
    twin = toy(interventions={"lr_bounds": (0.01, 100.0)})
    twin.advance(10)
    rollouts.adopt(NOTHING, 10)
    assert run.fingerprint() == twin.fingerprint()


def test_where_folding_fails_each_is_trained_by_itself(
    tiny: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(folded: Folded, steps: int, among: Any = None) -> Any:
        raise MemoryError

    run = own(tiny)
    alone = Rollouts(own(tiny), decision_steps=4, fold=False).run(
        [NOTHING, LOWER], 5, measure="horizon"
    )
    monkeypatch.setattr(Folded, "advance", no_memory)
    outcomes = Rollouts(run, decision_steps=4).run([NOTHING, LOWER], 5, measure="horizon")
    assert [o.validation for o in outcomes] == [o.validation for o in alone]
    assert not any(o.error for o in outcomes)


@pytest.mark.parametrize("room", [2, 1])
def test_where_a_device_has_no_room_for_all_forks_each_is_trained_by_itself(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fit until one of them trains: the control, too, would be lost."""
    advance = InTurn.advance

    def crowded(forks: InTurn, steps: int, among: Sequence[int]) -> Any:
        if 1 + len(forks.runs) > room:  # beside the run itself
            raise torch.OutOfMemoryError("CUDA out of memory")
        return advance(forks, steps, among)

    run, sequences = toy(), [NOTHING, LOWER, HIGHER]
    expected = Rollouts(toy(), decision_steps=5, cooldown=4).run(sequences, 10, measure="annealed")
    monkeypatch.setattr(InTurn, "advance", crowded)
    outcomes = Rollouts(run, decision_steps=5, cooldown=4).run(sequences, 10, measure="annealed")
    if room == 1:
        assert {o.error for o in outcomes} == {"OutOfMemoryError: CUDA out of memory"}
    else:
        assert outcomes == expected
        assert run.ledger["verify"] == 3 * 14 * run.flops_ahead


def test_what_fails_after_a_branch_is_told_and_its_steps_are_not_trained_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, calls = toy(), []

    def no_memory(together: Any, steps: int, among: Sequence[int] = (0,)) -> Any:
        calls.append(tuple(among))
        raise MemoryError("none")

    monkeypatch.setattr("trainenv.rollouts.executor.cool_down", no_memory)
    rollouts = Rollouts(run, decision_steps=5, cooldown=4)
    outcomes = rollouts.run([NOTHING, LOWER], 5, measure="annealed")
    assert [o.error for o in outcomes] == ["MemoryError: none"] * 2
    assert [(o.steps, o.looks) for o in outcomes] == [(5, (0, 5))] * 2
    assert calls == [(0,), (1,)]


def test_an_intervention_out_of_bounds_fails_alone(tiny: TrainingRun) -> None:
    run = own(tiny)
    lowest = (Intervention(lr_scale=0.5),) * 8
    outcomes = Rollouts(run, decision_steps=1).run([NOTHING, lowest], 9, measure="horizon")
    assert outcomes[0].error == ""
    assert "lr_scale in force must stay within" in outcomes[1].error
    assert outcomes[0].steps == 9
    assert 0 < outcomes[1].steps < 9


@pytest.mark.parametrize("fold", [True, False])
def test_a_loss_that_is_lost_is_a_divergence(tiny: TrainingRun, fold: bool) -> None:
    run = own(tiny)
    run.config = run.config.model_copy(
        update={
            "interventions": run.config.interventions.model_copy(update={"lr_bounds": (1e-3, 1e12)})
        }
    )
    rollouts, fatal = (
        Rollouts(run, decision_steps=4, fold=fold),
        (Intervention(lr_scale=1e12, clip="none"),),
    )
    outcomes = rollouts.run([NOTHING, fatal, LOWER], 8, measure="horizon")
    assert [(o.diverged, o.error) for o in outcomes] == [(False, ""), (True, ""), (False, "")]
    assert rollouts.run([fatal], 20, measure="final")[0].steps == 0  # not trained further
    with pytest.raises(UserError, match="run it first"):
        rollouts.adopt(fatal, 8)


def test_a_loss_beyond_the_cap_is_a_divergence_and_the_end_of_it() -> None:
    run = toy(interventions={"lr_bounds": (0.01, 1e5)}, environment={"divergence_loss": 1.5})
    rollouts, wild = (
        Rollouts(run, decision_steps=5, evaluate_every=5),
        (Intervention(lr_scale=3e3),),
    )
    outcomes = rollouts.run([NOTHING, wild], 20, measure="horizon")
    assert [o.diverged for o in outcomes] == [False, True]
    assert outcomes[1].looks == (0, 5)
    assert outcomes[1].steps == 5
    assert outcomes[1].validation[-1] > 1.5 * run.uniform_loss
    assert rollouts.run([wild], 20, measure="annealed")[0].steps == 0
    late = Rollouts(toy(interventions={"lr_bounds": (0.01, 1e5)}), decision_steps=5, cooldown=0)
    assert math.isfinite(late.run([NOTHING], 5, measure="annealed")[0].annealed)


def test_a_run_that_diverges_on_the_way_to_its_end_has_diverged() -> None:
    run = toy(steps=40, environment={"divergence_loss": 1.5})
    run._rates = replace(run._rates, stress=lambda step: 1e5 if step > 20 else 1.0)
    outcome = Rollouts(run, decision_steps=5).run([NOTHING], 5, measure="final")[0]
    assert outcome.diverged
    assert outcome.validation[-1] < 1.5 * run.uniform_loss


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wrong", [{"decision_steps": 0}, {"cooldown": -1}, {"evaluate_every": 0}])
def test_step_counts_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least"):
        Rollouts(toy(), **({"decision_steps": 5} | wrong))  # type: ignore[arg-type]


def test_what_was_not_run_or_is_stale_is_not_adopted() -> None:
    run = toy()
    rollouts = Rollouts(run, decision_steps=5)
    with pytest.raises(UserError, match="at least 1, found 0"):
        rollouts.run([NOTHING], 0, measure="horizon")
    rollouts.run([NOTHING], 5, measure="horizon")
    for sequence, steps in ((LOWER, 5), (NOTHING, 6), (NOTHING, 4)):
        with pytest.raises(UserError, match="run it first"):
            rollouts.adopt(sequence, steps)
    run.apply(Intervention(lr_scale=0.9))
    with pytest.raises(UserError, match="make new Rollouts"):
        rollouts.adopt(NOTHING, 5)
    assert rollouts.run([], 5, measure="horizon") == []


# ── a Folded's snapshot ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_snapshot_of_a_folded_run_goes_on_by_itself(
    tiny: TrainingRun, tmp_path: Path, through_a_file: bool
) -> None:
    forks = [own(tiny) for _ in range(3)]
    folded = Folded(forks)
    forks[1].apply(Intervention(lr_scale=0.5, clip="zclip"))
    folded.advance(4)
    taken = folded.snapshot(1)
    if through_a_file:
        with CheckpointStore(tmp_path / "saved", moments="exact") as store:
            store.save(taken, wait=True)
        taken = CheckpointStore(tmp_path / "saved").load(exact=True)
    plain = TrainingRun.from_config("tiny", SMALL)
    plain.restore(taken, exact=True)
    assert (plain.step, plain.lr_scale, plain.clip) == (14, 0.5, "zclip")
    for ours, theirs in zip(plain.model.parameters(), forks[1].model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    groups = [[p.numel() for p in group["params"]] for group in plain.optimizer.param_groups]
    for group, row, sizes in zip(plain.optimizer.param_groups, forks[1]._parameters, groups):
        kept = forks[1].optimizer.state[row]
        for name in ("exp_avg", "exp_avg_sq"):
            pieces = torch.split(kept[name], sizes)
            for p, piece in zip(group["params"], pieces, strict=True):
                assert torch.equal(plain.optimizer.state[p][name].reshape(-1), piece)
    follow(folded, plain)


def follow(folded: Folded, plain: TrainingRun) -> None:
    """Both go on for some steps, alike within rounding; every parameter counts its own steps."""
    together, alone = folded.advance(6)[1], plain.advance(6)
    assert [t.loss for t in together] == pytest.approx([t.loss for t in alone], rel=1e-5)
    assert [t.data_index for t in together] == [t.data_index for t in alone]
    counts = {
        float(plain.optimizer.state[p]["step"])
        for group in plain.optimizer.param_groups
        for p in group["params"]
    }
    assert counts == {20.0}


def test_a_snapshot_of_a_folded_run_is_the_runs_own_before_the_first_step() -> None:
    fresh = TrainingRun.from_config("tiny", SMALL)
    expected, fork = fresh.snapshot(), fresh.fork()
    found = Folded([fork]).snapshot(0)
    assert contents(found) == contents(expected)


def test_a_snapshot_of_a_run_just_folded_is_that_of_the_run(tiny: TrainingRun) -> None:
    run = own(tiny)
    expected = run.snapshot()
    other = own(tiny)
    other.restore(Folded([run]).snapshot(0), exact=True)
    assert other.fingerprint() == fingerprint_at(expected, tiny)


def fingerprint_at(snapshot: Snapshot, like: TrainingRun) -> str:
    run = own(like)
    run.restore(snapshot, exact=True)
    return run.fingerprint()


def contents(snapshot: Snapshot) -> tuple[Any, ...]:
    kept = {name: tensor.tolist() for name, tensor in snapshot.tensors.items()}
    return snapshot.step, kept, {k: v for k, v in snapshot.state.items() if k != "ledger"}


# ── planners run on it ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("pbt", {"population": 4, "generations": 3, "interval": 1}),
        ("autolrs", {"stage": 4, "tries": 3, "share": 0.5}),
    ],
)
def test_planners_run_on_it(name: str, hyper: dict[str, Any]) -> None:
    run = toy(steps=100, taken=10)
    telemetry: list[Telemetry] = run.advance(10)
    rollouts, codec, before = (
        Rollouts(run, decision_steps=5, evaluate_every=1),
        ActionCodec(run.config.interventions),
        state(run),
    )
    spent = run.ledger["verify"] + run.ledger["evaluate"]
    plan = planners.make(name, **hyper).plan(
        PlanningProblem(
            history=history_of(run, telemetry, horizon=20),
            codec=codec,
            masks=codec.masks(run),
            generator=np.random.default_rng(0),
            executor=rollouts,
            criterion=Score(measure="horizon"),
            budget=Budget(steps=60),
        )
    )
    assert state(run) == before
    assert plan.faults == ()
    assert len(plan.candidates) > 1
    assert 0 < plan.cost.steps <= 60
    assert plan.cost.flops == pytest.approx(run.ledger["verify"] + run.ledger["evaluate"] - spent)
    one = next(c for c in plan.candidates if c.outcomes and not c.does_nothing)
    steps = one.outcomes[-1].looks[-1]
    rollouts.adopt(one.interventions, steps)
    assert run.evaluate() == one.outcomes[-1].validation[-1]


# ── of the past ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def went_on(steps: int = 8) -> tuple[TrainingRun, Snapshot, Sequence[Telemetry]]:
    """A run, a snapshot of it and what it has done since."""
    run = toy()
    snapshot = run.snapshot()
    return run, snapshot, run.advance(steps)


def test_futures_of_the_past_are_what_could_have_been_done_since() -> None:
    run, snapshot, since = went_on()
    before, fingerprint = run.ledger["verify"], run.fingerprint()
    rollouts = Rollouts(run, decision_steps=4, start=snapshot)
    nothing, lower = rollouts.run([NOTHING, LOWER], 8, measure="horizon")
    assert rollouts.past
    assert [t.loss for t in rollouts.future(NOTHING, 8).telemetry] == [t.loss for t in since]
    assert nothing.validation[-1] == run.evaluate() != lower.validation[-1]
    assert nothing.validation[0] == lower.validation[0] != nothing.validation[-1]
    assert run.fingerprint() == fingerprint
    assert run.ledger["verify"] == before + 16 * run.flops_per_step


def test_the_run_goes_back_to_become_a_future_of_its_past() -> None:
    run, snapshot, since = went_on()
    run.spend(3)
    run.flag([11, 40])
    main, end = run.ledger["main"], run.horizon.end
    rollouts = Rollouts(run, decision_steps=4, start=snapshot)
    rollouts.run([LOWER], 8, measure="horizon")
    kept = rollouts.adopt(LOWER, 8)
    assert (run.step, run.lr_scale) == (snapshot.step + 8, 0.5)
    assert [t.step for t in kept] == [t.step for t in since]
    assert (
        run.horizon.end == end - 8
    )  # what was spent meanwhile stays spent, and the steps that were left are gone
    assert run.flagged == (11, 40)
    assert (run.ledger["main"], run.ledger["rewound"]) == (main, 8 * run.flops_per_step)
    assert run.ledger["verify"] == 0


def test_a_past_that_is_yet_to_come_is_refused() -> None:
    run, _, _ = went_on()
    ahead = toy(taken=40).snapshot()
    with pytest.raises(
        UserError, match="start must be a snapshot of step 16 or before, found step 40"
    ):
        Rollouts(run, decision_steps=4, start=ahead)
