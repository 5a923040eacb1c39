"""A run: what it measures, how it is steered, what it costs, and how it says that something is wrong."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch

import trainenv
from trainenv.config.presets import find, read_yaml
from trainenv.config.schema import RunConfig, UncertaintyConfig
from trainenv.run import TrainingRun
from trainenv.types import CLIP_NAMES, ClipReport, Intervention, Reading, Telemetry, UserError

LR, WARMUP, STEPS, FINAL, WARM_AGAIN = 3e-3, 5, 40, 0.1, 6
SMALL: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 4,
    "block_steps": 4,
    "reset_warmup": WARM_AGAIN,
    "model": {"width": 32, "layers": 1, "heads": 2, "context": 32},
    "schedule": {"warmup": WARMUP, "final": FINAL},
    "validation": {"every": 0, "sequences": 4},
    "monitor": {"block": 5, "probe_every": 3},
}


def made(**settings: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", {**SMALL, **settings})


def cosine(step: int, end: int = STEPS) -> float:
    """The learning rate of the step after `step` completed ones, by the book."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    return LR * (
        FINAL + (1 - FINAL) * (1 + math.cos(math.pi * min(1, (step - WARMUP) / (end - WARMUP)))) / 2
    )


# ── telemetry ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_advance_tells_of_each_step() -> None:
    run = made()
    assert run.advance(0) == []
    window = run.advance(12)
    assert [t.step for t in window] == list(range(1, 13))
    assert [t.data_index for t in window] == list(range(12))
    assert run.step == 12
    for telemetry in window:
        assert isinstance(telemetry, Telemetry)
        assert telemetry.tokens == 4 * 32
        assert 0 < telemetry.loss < 7
        assert telemetry.grad_norm > 0
        assert telemetry.clip == "zclip"
        assert telemetry.stressors == ()
        assert telemetry.steps_since_reset == -1
        assert telemetry.weight_decay == 0.1
        assert isinstance(telemetry.reading, Reading)
        assert type(telemetry.loss) is float
    probed = [t.step for t in window if not math.isnan(t.probe_loss)]
    assert probed == [1, 4, 7, 10]
    assert [t.step for t in window if not math.isnan(t.attention_entropy)] == probed
    assert all(0 < t.attention_entropy <= 1 for t in window if t.step in probed)


@pytest.mark.parametrize("stress", [False, True])
def test_the_learning_rate_is_the_schedule_times_what_is_in_force(stress: bool) -> None:
    planted = [{"at": 8, "kind": "lr_spike", "steps": 2, "size": 3.0}]
    run = (
        made(stressors={"harsh_warmup_steps": 3, "harsh_warmup_lr": 2.0, "planted": planted})
        if stress
        else made()
    )
    window = run.advance(10)
    run.apply(Intervention(lr_scale=0.8, weight_decay_scale=2.0))
    window += run.advance(10)
    run.apply(Intervention(lr_scale=1.5, weight_decay_scale=0.25))
    window += run.advance(22)
    for telemetry in window:
        step = telemetry.step - 1
        scale = 1.0 if step < 10 else 0.8 if step < 20 else 1.2
        spike = (2.0 if step < 3 else 3.0 if step in (8, 9) else 1.0) if stress else 1.0
        assert telemetry.lr == pytest.approx(cosine(step) * scale * spike)
        assert telemetry.lr_scale == pytest.approx(scale)
        assert telemetry.weight_decay_scale == (1.0 if step < 10 else 2.0 if step < 20 else 0.5)
        assert telemetry.weight_decay == pytest.approx(0.1 * telemetry.weight_decay_scale)
        assert ("lr_spike" in telemetry.stressors) == (spike != 1)
        assert telemetry.progress == pytest.approx(min(1, max(0, step - WARMUP) / (STEPS - WARMUP)))
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(LR * FINAL * 1.2)
    assert run.optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.05)
    assert run.optimizer.param_groups[1]["weight_decay"] == 0


@pytest.mark.parametrize("kind", ["wsd", "constant"])
def test_the_other_schedules(kind: str) -> None:
    window = made(
        schedule={"kind": kind, "warmup": WARMUP, "final": FINAL, "decay_share": 0.5}
    ).advance(STEPS + 1)
    for telemetry in window:
        step = telemetry.step - 1
        progress = min(1.0, max(0, step - WARMUP) / (STEPS - WARMUP))
        factor = (
            1 - (1 - FINAL) * math.sqrt(max(0.0, (progress - 0.5) / 0.5)) if kind == "wsd" else 1.0
        )
        assert telemetry.lr == pytest.approx(LR * min(1, (step + 1) / WARMUP) * factor)


def test_the_first_update_is_adam_s() -> None:
    run = made(**{"clip.policy": "none", "optimizer.weight_decay": 0.0})
    before = [p.detach().clone() for p in run.model.parameters()]
    (telemetry,) = run.advance(1)
    change = max(
        (p.detach() - old).abs().max().item() for p, old in zip(run.model.parameters(), before)
    )
    assert change == pytest.approx(
        telemetry.lr, rel=1e-3
    )  # the first step of Adam goes lr in every direction


def test_accumulation_changes_nothing_but_the_memory() -> None:
    whole, parts = (
        made(**{"clip.policy": "none"}).advance(6),
        made(**{"clip.policy": "none"}, accumulation=4).advance(6),
    )
    for one, other in zip(whole, parts):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
        assert other.tokens == one.tokens


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    settings = {"model.dropout": 0.1}
    first, again, other = made(**settings), made(**settings), made(**settings, seed=1)
    assert first.fingerprint() == again.fingerprint()
    assert [repr(t) for t in first.advance(6)] == [repr(t) for t in again.advance(6)]
    assert first.fingerprint() == again.fingerprint()
    telemetry = other.advance(6)
    assert telemetry[0].loss != again.advance(1)[0].loss
    assert other.fingerprint() != first.fingerprint()


def test_training_learns() -> None:
    run = made()
    first = run.evaluate()
    assert first == pytest.approx(run.uniform_loss, rel=0.05)
    assert run.uniform_loss == pytest.approx(math.log(run.model.config.vocab_size))
    run.advance(STEPS)
    assert run.evaluate() < first - 0.5


# ── steering ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_multipliers_are_cumulative_and_bounded() -> None:
    run = made(
        **{"interventions.lr_bounds": [0.5, 2.0], "interventions.weight_decay_bounds": [0.5, 2.0]}
    )
    run.apply(Intervention(lr_scale=0.9))
    run.apply(Intervention(lr_scale=0.9))
    assert run.lr_scale == pytest.approx(0.81)
    assert run.applied == ((0, Intervention(lr_scale=0.9)), (0, Intervention(lr_scale=0.9)))
    run.advance(1)
    before = run.fingerprint()
    refused = [
        (
            Intervention(lr_scale=0.5),
            r"lr_scale in force must stay within \[0.5, 2\], this intervention would make it 0.405",
        ),
        (
            Intervention(lr_scale=3, clip="none", momentum_reset=True),
            "widen interventions.lr_bounds",
        ),
        (
            Intervention(lr_scale=1.1, weight_decay_scale=4, data_reorder=True),
            "widen interventions.weight_decay_bounds",
        ),
    ]
    for intervention, message in refused:
        with pytest.raises(UserError, match=message):
            run.apply(intervention)
        assert run.fingerprint() == before
    run.apply(Intervention(lr_scale=2 / 0.81))
    assert run.lr_scale == pytest.approx(2)


def test_doing_nothing_does_nothing() -> None:
    run = made()
    run.advance(3)
    before = run.fingerprint()
    run.apply(Intervention())
    assert run.fingerprint() == before
    assert run.applied == ()


def test_a_momentum_reset_zeroes_the_moments_and_warms_up_again() -> None:
    run = made(**{"schedule.kind": "constant"})
    run.advance(8)
    run.apply(Intervention(momentum_reset=True))
    for state in run.optimizer.state.values():
        assert all(
            float(state[name].abs().sum()) == 0 for name in ("exp_avg", "exp_avg_sq", "step")
        )
    window = run.advance(WARM_AGAIN + 2)
    assert [t.steps_since_reset for t in window] == list(range(1, WARM_AGAIN + 3))
    for place, telemetry in enumerate(window):
        share = min(1, place / WARM_AGAIN)
        assert telemetry.lr == pytest.approx(LR * (1 - 0.99 * (1 + math.cos(math.pi * share)) / 2))
    assert window[0].lr == pytest.approx(0.01 * LR)
    assert all(float(state["step"]) == WARM_AGAIN + 2 for state in run.optimizer.state.values())


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_a_policy_stays_until_it_is_changed(name: Any) -> None:
    run = made()
    assert run.clip == "zclip"
    run.advance(2)
    run.apply(Intervention(clip=name))
    assert run.clip == name
    assert {t.clip for t in run.advance(2)} == {name}
    run.apply(Intervention(lr_scale=0.9))
    assert run.clip == name


def test_setting_the_policy_in_force_keeps_its_state() -> None:
    run, twin = made(), made()
    run.advance(6)
    twin.advance(6)
    run.apply(Intervention(clip="zclip"))
    run.advance(4)
    twin.advance(4)
    assert run.snapshot().state["clip"] == twin.snapshot().state["clip"]
    assert torch.equal(next(run.model.parameters()), next(twin.model.parameters()))


def test_flagged_data_is_skipped() -> None:
    run = made()
    run.advance(4)
    run.flag([2, 5, 6, 9])
    run.flag([6])
    assert run.flagged == (2, 5, 6, 9)
    assert run.flagged_ahead == (5, 6, 9)
    assert [t.data_index for t in run.fork().advance(3)] == [4, 5, 6]
    run.apply(Intervention(skip_batch=True))
    assert run.flagged_ahead == ()
    assert [t.data_index for t in run.advance(6)] == [4, 7, 8, 10, 11, 12]
    assert [t.step for t in run.advance(1)] == [11]


def test_a_reorder_keeps_blocks_together_and_loses_nothing() -> None:
    run = made(block_steps=3, monitor={"enabled": False})
    run.advance(4)
    run.apply(Intervention(data_reorder=True))
    indices = [t.data_index for t in run.advance(8)]
    assert indices[:2] == [4, 5]
    assert indices[2:] != list(range(6, 12))
    assert [b - a for a, b in zip(indices[2::3], indices[3::3])] == [1, 1]
    assert len(set(indices)) == 8


# ── the budget ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rewind_keeps_what_was_learned_and_what_was_spent() -> None:
    run = made()
    run.advance(10)
    back = run.snapshot()
    cost = run.ledger["main"] / 10
    run.advance(8)
    run.flag([12, 13])
    before = run.ledger["evaluate"]
    run.rewind(back)
    assert run.step == 10
    assert {12, 13} <= set(run.flagged)
    assert run.flagged_ahead[:2] == (12, 13)
    assert run.ledger["main"] == pytest.approx(10 * cost)
    assert run.ledger["rewound"] == pytest.approx(8 * cost)
    assert run.ledger["evaluate"] == before
    assert run.horizon.end == STEPS - 8
    assert run.flops_per_step == pytest.approx(cost)
    run.apply(Intervention(skip_batch=True))
    window = run.advance(run.horizon.end - run.step)
    assert run.done
    assert run.step == STEPS - 8
    assert not {12, 13} & {t.data_index for t in window}
    assert run.ledger["main"] + run.ledger["rewound"] == pytest.approx(STEPS * cost)
    rates = [t.lr for t in window]
    assert rates[0] == pytest.approx(cosine(10))  # the learning rate stays continuous ...
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1.1 * LR * FINAL
    assert run.advance(1)[0].lr == pytest.approx(LR * FINAL)  # ... and ends annealed


def test_rewinding_twice_to_one_snapshot_costs_twice() -> None:
    run = made()
    run.advance(6)
    back = run.snapshot()
    for spent in (4, 10):
        run.advance(spent - (STEPS - run.horizon.end))
        run.rewind(back)
        assert run.horizon.end == STEPS - spent
    run.spend(3)
    run.advance(2)
    run.rewind(back)
    assert run.horizon.end == STEPS - 10 - 3 - 2
    assert run.ledger["rewound"] == pytest.approx(12 * run.flops_per_step)


def test_a_rewind_to_where_it_is_costs_nothing() -> None:
    run = made()
    run.advance(5)
    before = run.fingerprint()
    run.rewind(run.snapshot())
    assert run.horizon.end == STEPS
    assert run.fingerprint() == before


def test_a_rewind_past_the_whole_budget_ends_the_run() -> None:
    run = made()
    back = run.snapshot()
    run.advance(STEPS)
    run.rewind(back)
    assert run.step == 0
    assert run.done


def test_spending_brings_the_end_nearer() -> None:
    run = made()
    run.advance(10)
    run.spend(12)
    assert run.horizon.end == STEPS - 12
    assert not run.done
    assert run.advance(1)[0].lr == pytest.approx(cosine(10))
    run.advance(STEPS - 12 - 12)
    assert not run.done
    run.advance(1)
    assert run.done
    run.spend(5)
    assert run.horizon.end == run.step
    assert run.advance(1)[0].lr == pytest.approx(LR * FINAL)


def test_flops_by_the_formula() -> None:
    run = made()
    vocabulary, width, layers, context = run.model.config.vocab_size, 32, 1, 32
    parameters = vocabulary * width + layers * (12 * width**2 + 13 * width) + 2 * width
    token = 6 * parameters + 12 * layers * width * context
    assert run.flops_per_step == 0
    run.advance(7)
    assert run.ledger["main"] == pytest.approx(7 * 4 * 32 * token)
    assert run.flops_per_step == pytest.approx(4 * 32 * token)
    looks = run.ledger["evaluate"]
    assert looks == pytest.approx(
        3 * 2 * 32 * token / 3
    )  # three looks at two sequences, a forward pass each
    run.evaluate()
    assert run.ledger["evaluate"] - looks == pytest.approx(4 * 32 * token / 3)
    run.fork().advance(2)
    run.fork(purpose="plan").advance(3)
    assert run.ledger["verify"] == pytest.approx(2 * 4 * 32 * token)
    assert run.ledger["plan"] == pytest.approx(3 * 4 * 32 * token)
    assert run.ledger["main"] == pytest.approx(7 * 4 * 32 * token)


def test_evaluation_is_deterministic_and_changes_nothing() -> None:
    run, twin = made(**{"model.dropout": 0.3}), made(**{"model.dropout": 0.3})
    run.advance(3)
    twin.advance(3)
    before = run.fingerprint()
    assert run.evaluate() == run.evaluate() == run.fork().evaluate()
    assert run.model.training
    assert run.fingerprint() == before
    assert [repr(t) for t in run.advance(3)] == [repr(t) for t in twin.advance(3)]
    assert all(p.grad is None for p in run.model.parameters())


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings",
    [{"model.width": 64}, {"model.layers": 2}, {"seed": 5}, {"model.context": 16}],
    ids=str,
)
def test_the_snapshot_of_another_run_is_refused(settings: dict[str, Any]) -> None:
    run, other = made(), made(**settings)
    run.advance(3)
    other.advance(2)
    before = run.fingerprint()
    for use in (run.restore, run.rewind):
        with pytest.raises(UserError, match="the snapshot is of"):
            use(other.snapshot())
        assert run.fingerprint() == before
        assert run.ledger["rewound"] == 0


def test_the_snapshot_of_another_optimizer_is_refused() -> None:
    config = RunConfig.load("tiny", SMALL)
    run = TrainingRun.from_config(config)
    other = TrainingRun.from_config(config)
    model = other.model
    other = TrainingRun.from_config(
        config, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )
    before = run.fingerprint()
    with pytest.raises(UserError, match="optimizer"):
        run.restore(other.snapshot())
    assert run.fingerprint() == before


MISTAKES: dict[str, tuple[Callable[[TrainingRun], Any], str]] = {
    "negative": (lambda run: run.advance(-1), "steps must be 0 or more, found -1"),
    "forward": (lambda run: run.rewind(ahead(run)), "a rewind goes back"),
    "scale": (lambda run: run.apply(Intervention(lr_scale=-1)), "above 0"),
    "policy": (lambda run: run.apply(Intervention(clip="zclop")), "none, zclip, arc, spam"),  # type: ignore[arg-type]
}


def ahead(run: TrainingRun) -> trainenv.Snapshot:
    fork = run.fork()
    fork.advance(1)
    return fork.snapshot()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said_clearly_and_change_nothing(name: str) -> None:
    run = made()
    run.advance(2)
    before = run.fingerprint()
    call, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        call(run)
    assert run.fingerprint() == before


def test_a_run_without_a_validation_set_says_so() -> None:
    run = TrainingRun.from_config("tiny", SMALL, validation=())
    with pytest.raises(UserError, match="no validation set; pass validation="):
        run.evaluate()


def test_a_model_without_anything_to_train_is_refused() -> None:
    frozen = made().model.requires_grad_(False)
    with pytest.raises(UserError, match="require gradients"):
        TrainingRun.from_config(
            "tiny",
            SMALL,
            model=frozen,
            optimizer=torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1),
        )


# ── the names that hold ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_names_of_a_run() -> None:
    assert list(inspect.signature(trainenv.TrainingRun.from_config).parameters)[:2] == [
        "source",
        "overrides",
    ]
    run = trainenv.TrainingRun.from_config(RunConfig.load("tiny", SMALL))
    assert isinstance(run.advance(1), list)
    run.apply(trainenv.Intervention(lr_scale=0.9, clip="zclip"))
    assert isinstance(run.model, torch.nn.Module)
    assert isinstance(run.optimizer, torch.optim.Optimizer)
    assert type(run.evaluate()) is float
    snapshot = run.snapshot()
    assert isinstance(snapshot, trainenv.Snapshot)
    assert snapshot.step == run.step == 1
    assert run.restore(snapshot) is None  # type: ignore[func-returns-value]
    assert isinstance(run.fork(), trainenv.TrainingRun)
    assert isinstance(run.fingerprint(), str)
    assert run.ledger["main"] > 0
    assert all(hasattr(trainenv, name) for name in trainenv.__all__)
    assert all(getattr(trainenv, name) is not None for name in trainenv.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Runner'"):
        _ = trainenv.Runner


def test_the_names_of_an_intervention() -> None:
    assert [(f.name, f.default) for f in fields(trainenv.Intervention)] == [
        ("lr_scale", 1.0),
        ("weight_decay_scale", 1.0),
        ("clip", None),
        ("momentum_reset", False),
        ("data_reorder", False),
        ("skip_batch", False),
        ("emphasis", None),
    ]
    with pytest.raises(TypeError):
        trainenv.Intervention(0.9)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["none", "zclip", "arc", "spam"])
def test_the_names_of_a_clip_policy(name: str) -> None:
    model = torch.nn.Linear(3, 2)
    clip = trainenv.clipping.make(name)
    model(torch.ones(1, 3)).sum().backward()
    assert isinstance(clip(model.parameters()), ClipReport)
    other = trainenv.clipping.make(name)
    other.load_state_dict(clip.state_dict())
    assert all(
        torch.equal(value, clip.state_dict()[key]) for key, value in other.state_dict().items()
    )


def test_the_names_of_the_uncertainty_index() -> None:
    config = UncertaintyConfig(**read_yaml(find("uncertainty")))
    reading = trainenv.UncertaintyIndex(config).update(made().advance(1)[0])
    assert isinstance(reading, trainenv.Reading)
    assert [f.name for f in fields(reading)] == [
        "volatility",
        "entropy",
        "disagreement",
        "index",
        "threshold",
        "fired",
    ]
    assert trainenv.UncertaintyIndex().config == config
