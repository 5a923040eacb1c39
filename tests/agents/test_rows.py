"""Rows without a model of their own: ramps, paths, hypergradients, and the loop with a blind model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.made_models import history, model, telemetry
from trainenv import RunConfig, TrainingRun
from trainenv.agents.baselines.always_ramp import Ramp
from trainenv.agents.baselines.hypergradient_descent import HypergradientDescent
from trainenv.agents.baselines.marthe import Marthe
from trainenv.agents.baselines.rate_paths import PATHS, RatePath
from trainenv.composition.methods import METHODS
from trainenv.loop import resume, train
from trainenv.planners.testing import CHECKS
from trainenv.records.run_folder import read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import Intervention, UserError

CONFIG = RunConfig.load(
    "tiny",
    {
        "steps": 90,
        "batch_size": 4,
        "reset_warmup": 4,
        "model": {"width": 16, "layers": 1, "heads": 1, "context": 16},
        "schedule.warmup": 10,
        "validation": {"every": 48, "sequences": 4},
        "checkpoints": {"every": 30, "moments": "exact"},
        "monitor": {"block": 6, "probe_every": 4},
        "environment.decision_steps": 4,
        "branching": {"every": 12, "horizon": 16, "verify_steps": 2, "refractory_steps": 6},
        "clip.policy": "none",
    },
)
LOOPS = ("ramp-up", "ramp-down", "blind")
ROWS = (*LOOPS, "hypergradient", "marthe", "path-1.41", "path-up-2-50")


def ran(name: str, path: Path, config: RunConfig = CONFIG) -> dict[str, Any]:
    return METHODS[name](config, path, lambda run, window: None, lambda: False)


def spent(summary: dict[str, Any], path: Path) -> float:
    """All FLOPs but those of the validations that every run has."""
    validations = len(read_validation(path))
    each = TrainingRun.from_config(CONFIG).flops_per_evaluation
    return float(sum(summary["flops"].values()) - validations * each)


@pytest.fixture(scope="module")
def most(tmp_path_factory: pytest.TempPathFactory) -> float:
    path = tmp_path_factory.mktemp("nothing") / "run"
    return spent(ran("nothing", path), path)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains_at_equal_compute_and_twice_the_same(
    name: str, most: float, tmp_path: Path
) -> None:
    summary = ran(name, tmp_path / "run")
    assert summary["ended"] == "budget spent"
    assert math.isfinite(summary["final_validation_loss"])
    # A loop keeps back what a decision may cost; the others spend the budget.
    least = 0.9 if name in LOOPS else 0.97
    assert least * most <= spent(summary, tmp_path / "run") <= 1.01 * most
    assert (tmp_path / "run" / "summary.json").is_file()
    kept = read_telemetry(tmp_path / "run", kept_only=True)
    assert list(kept["step"]) == list(range(1, summary["step"] + 1))
    again = ran(name, tmp_path / "again")
    assert again["fingerprint"] == summary["fingerprint"]


# ── ramps ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_ramp_keeps_the_contract_of_planners(check: Any) -> None:
    check(Ramp())


@pytest.mark.parametrize(("name", "factor"), [("ramp-up", 1.1), ("ramp-down", 0.9)])
def test_a_ramp_is_verified_and_accepted_or_refused_like_a_draft(
    name: str, factor: float, tmp_path: Path
) -> None:
    ran(name, tmp_path / "run")
    decisions = [e["detail"] for e in read_events(tmp_path / "run") if e["kind"] == "decision"]
    assert decisions
    rates = set(read_telemetry(tmp_path / "run", kept_only=True)["lr_scale"].round(9))
    steps = {round(factor**times, 9) for times in range(60)}
    assert rates <= steps
    if name == "ramp-up":
        assert len(rates) > 1


# ── paths ───────────────────────────────────────────────────────────────────────────────────────


def test_every_path_is_a_method_and_named_for_what_it_does() -> None:
    assert set(PATHS) <= set(METHODS)
    assert len(PATHS) >= 25
    for name, path in PATHS.items():
        parts = name.split("-")
        if len(parts) == 2:
            assert {path.factor(p) for p in (0.0, 0.3, 1.0)} == {float(parts[1])}
            continue
        _, direction, factor, percent = parts
        end = int(percent) / 100
        assert path.factor(0.0) == 1.0
        assert path.factor(end / 2) == pytest.approx(math.sqrt(float(factor)))
        assert path.factor(end) == path.factor(1.0) == pytest.approx(float(factor))
        assert (float(factor) > 1) == (direction == "up")


def test_a_constant_path_holds_from_the_first_step_on_and_clips(tmp_path: Path) -> None:
    ran("path-1.41", tmp_path / "run")
    rows = read_telemetry(tmp_path / "run")
    assert set(rows["lr_scale"]) == {1.41}
    assert set(rows["clip"]) == {"zclip"}


def test_a_ramp_is_followed_at_the_ends_of_blocks(tmp_path: Path) -> None:
    ran("path-up-2-50", tmp_path / "run")
    rows = read_telemetry(tmp_path / "run")
    wanted = [PATHS["path-up-2-50"].factor((step - 1) // 6 * 6 / 90) for step in rows["step"]]
    assert list(rows["lr_scale"]) == pytest.approx(wanted)
    assert rows["lr_scale"].iloc[-1] == pytest.approx(2.0)


def test_a_clip_policy_that_was_chosen_stays(tmp_path: Path) -> None:
    ran("path-0.5", tmp_path / "run", RunConfig.load(CONFIG, {"clip.policy": "arc", "steps": 12}))
    assert set(read_telemetry(tmp_path / "run")["clip"]) == {"arc"}


@pytest.mark.parametrize("points", [(), ((0.5, 1.0), (0.5, 2.0)), ((0.0, 0.0),), ((1.5, 1.0),)])
def test_a_path_that_is_none_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(UserError):
        RatePath(points=points)


# ── hypergradients ──────────────────────────────────────────────────────────────────────────────


def test_the_rate_follows_the_measured_cosines(tmp_path: Path) -> None:
    """Each measured one counts until the next."""
    ran("hypergradient", tmp_path / "run")
    rows = read_telemetry(tmp_path / "run")
    held = rows["hypergradient_cosine"].ffill().fillna(0.0).to_numpy()
    beta = HypergradientDescent().beta
    wanted = np.exp(np.concatenate([[0.0], np.log1p(beta * held).cumsum()]))
    seen = (rows["step"].to_numpy() - 1) // 6 * 6
    assert list(rows["lr_scale"]) == pytest.approx(wanted[seen])
    assert np.abs(held).max() > 0
    assert rows["lr_scale"].iloc[-1] != 1.0


def test_a_hypergradient_stays_within_the_bounds(tmp_path: Path) -> None:
    config = RunConfig.load(CONFIG, {"interventions.lr_bounds": [0.99, 1.01]})
    run = TrainingRun.from_config(config)
    train(run, tmp_path / "run", callback=HypergradientDescent(beta=0.9))
    rates = read_telemetry(tmp_path / "run")["lr_scale"]
    assert 0.98 < rates.min() <= rates.max() < 1.02
    assert len(set(rates)) > 1


@pytest.mark.parametrize("beta", [0, 1, -0.1, math.nan])
def test_a_beta_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(UserError, match="beta"):
        HypergradientDescent(beta=beta)


def small(**changes: Any) -> TrainingRun:
    """A run whose weights are a smooth function of its learning rate."""
    return TrainingRun.from_config(
        CONFIG, {"schedule.kind": "constant", "optimizer.eps": 1e-4, **changes}
    )


def test_the_slopes_of_the_weights_are_those_of_two_runs_with_other_rates(tmp_path: Path) -> None:
    """With μ = 1 and whole batches, the difference quotient of the weights in ln η."""
    marthe = Marthe(mu=1.0, beta=0.0, alpha=0.0, sequences=4, validation_sequences=1, every=1000)
    run = small()
    train(run, tmp_path / "run", callback=marthe, stop=lambda: run.step >= 12)
    assert marthe._tangent is not None
    found = torch.cat([one.flatten() for one in marthe._tangent.weights])
    ends = []
    for ln_factor in (-0.02, 0.02):
        other = small()
        other.apply(Intervention(lr_scale=math.exp(ln_factor)))
        other.advance(12)
        parameters = [p for group in other.optimizer.param_groups for p in group["params"]]
        ends.append(torch.cat([p.detach().flatten() for p in parameters]))
    wanted = (ends[1] - ends[0]) / 0.04
    assert float(torch.cosine_similarity(found, wanted, dim=0)) > 0.99
    assert float(found.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.05)


def test_a_rate_that_is_too_low_is_raised_and_one_too_high_lowered(tmp_path: Path) -> None:
    ends = []
    for lr in (1e-4, 1.0):
        run = small(**{"optimizer.lr": lr, "clip.policy": "zclip"})
        train(run, tmp_path / str(lr), callback=Marthe(every=2, beta=0.5))
        ends.append(run.lr_scale)
    assert ends[0] > 1.05
    assert ends[1] < 0.95


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = small()
    train(whole, tmp_path / "whole", callback=Marthe(every=4))
    part = small()
    train(part, tmp_path / "part", callback=Marthe(every=4), stop=lambda: part.step >= 21)
    again = small()
    callback = Marthe(every=4)
    folder, _ = resume(tmp_path / "part", again, callback)
    assert again.step == part.step == 21
    train(again, folder, callback=callback)
    assert again.fingerprint() == whole.fingerprint()
    assert again.step == whole.step


def test_its_cost_is_taken_off_once_where_a_run_is_trained_on(tmp_path: Path) -> None:
    run = small()
    callback = Marthe(every=4)
    train(run, tmp_path / "one", callback=callback, stop=lambda: run.step >= 20)
    end = run.horizon.end
    train(run, tmp_path / "two", callback=callback)
    whole = small()
    train(whole, tmp_path / "whole", callback=Marthe(every=4))
    assert run.step == whole.step == end
    assert run.fingerprint() == whole.fingerprint()


def test_what_it_can_not_differentiate_is_refused(tmp_path: Path) -> None:
    run = TrainingRun.from_config(CONFIG, {"accumulation": 2})
    with pytest.raises(UserError, match="accumulation"):
        train(run, tmp_path / "run", callback=Marthe())
    for changes in ({"mu": 1.1}, {"every": 0}, {"beta": -1}):
        with pytest.raises(UserError):
            Marthe(**changes)


# ── a blind model ───────────────────────────────────────────────────────────────────────────────


def test_a_blind_model_forecasts_the_same_for_every_run() -> None:
    """And a model that sees does not."""
    changes = [Intervention(lr_scale=0.8), Intervention(lr_scale=1.1)]
    one = history()
    other = replace(
        one, telemetry=tuple(telemetry(64, lr=3e-4, grad_norm=9.0)), validation=4.0, base_lr=0.1
    )
    seeing = model()
    assert seeing.forecast(one, changes) != seeing.forecast(other, changes)
    blind = seeing.blinded()
    found = [blind.forecast(of, changes) for of in (one, other)]
    assert [f.annealed for f in found[0]] == [f.annealed for f in found[1]]
    assert found[0][0].annealed != found[0][1].annealed
    roots = blind.initial_inference([one, other])
    assert np.array_equal(roots.latent[0], roots.latent[1])
    assert seeing.blind is False
