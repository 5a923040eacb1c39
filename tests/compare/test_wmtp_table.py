"""The comparison of weightings: table and verdicts of made-up cells, equal FLOPs, settings, page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainenv.compare.wmtp import METHODS, EvaluationSettings, Preset, config_of, load_preset, table
from trainenv.compare.wmtp.cells import convergence, weights
from trainenv.compare.wmtp.methods import flops_of
from trainenv.compare.wmtp.table import figure
from trainenv.report import write_report
from trainenv.report.wmtp import sentence
from trainenv.types import Telemetry, UserError

SMALL: dict[str, Any] = {
    "steps": 60,
    "batch_size": 4,
    "model": {"width": 16, "layers": 1, "heads": 2, "context": 48},
    "tasks": {"scale": 0.002, "held_out": 8, "kinds": ["strings"], "difficulties": [1, 1]},
    "schedule": {"warmup": 2},
    "validation": {"every": 6, "sequences": 4},
}
TD_ERRORS = {"right": [0, 7, 3], "wrong": [1, 9, 0], "explained": 0.25, "ranked": 0.75}
GAIN = {"uniform": 0.0, "rho1": 0.10, "random": 0.10, "shuffled": -0.05, "critic": 0.0}


def cell(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Make a row whose exact match is 0.3 + the seed's own level + the gain of the method."""
    noise = 0.01 * ((seed * 7 + len(method)) % 3 - 1)
    match = 0.3 + 0.1 * seed + GAIN[method] + noise
    return {
        "method": method,
        "seed": seed,
        "error": "",
        "ended": "budget spent",
        "steps": 100,
        "flops": 1e9,
        "validation_loss": 2.0 - match,
        "exact_match": {"value": match, "low": 0, "high": 1},
        "pass_at": {"1": {"value": match}, "10": {"value": match + 0.1}},
        "errors": {
            "difficulty": "loss of the reference",
            "counts": [[10, 30], [5, 0]],
            "losses": [[1.0, 2.0], [3.0, None]],
            "errors": [[0.5, 0.7], [0.9, None]],
        },
        "drafting": {"acceptance": 0.5, "tokens_per_call": 1.5, "speed_up": 1.1},
        "td_errors": TD_ERRORS if method == "critic" else None,
        "value_explained_variance": 0.2 if method == "critic" else None,
        **changes,
    }


def found(seeds: int = 4) -> dict[str, Any]:
    rows = [cell(method, seed) for method in GAIN for seed in range(seeds)]
    return table(rows, tuple(GAIN))


def test_differences_are_paired_and_verdicts_name_a_control_that_ties() -> None:
    made = found()
    match = made["metrics"]["exact_match"]
    assert match["methods"]["uniform"]["value"] == pytest.approx(0.45, abs=0.01)
    gain = match["against_uniform"]["rho1"]
    # The levels of the seeds lie 0.3 apart; paired differences do not see them.
    assert gain["value"] == pytest.approx(0.1, abs=0.011)
    assert gain["high"] - gain["low"] < 0.05
    clear = {
        (one["method"], one["against"]): one["clear"]
        for one in made["verdicts"]
        if one["metric"] == "exact_match"
    }
    assert clear == {
        ("critic", "uniform"): 0,
        ("rho1", "uniform"): 1,
        ("rho1", "random"): 0,
        ("rho1", "shuffled"): 1,
    }
    # Less is better for a loss.
    losses = [one for one in made["verdicts"] if one["metric"] == "validation_loss"]
    assert next(one for one in losses if one["against"] == "shuffled")["clear"] == 1
    tie = next(one for one in made["verdicts"] if one["against"] == "random")
    assert "no clear difference" in sentence(tie)


def test_two_seeds_decide_little() -> None:
    """The interval is that of Student's t: 12.7 standard errors of two seeds, 2.8 of five."""
    two = figure([0.1, 0.2])
    assert two.value == pytest.approx(0.15)
    assert two.low == pytest.approx(0.15 - 12.706 * 0.05, rel=1e-3)
    five = figure([0.1, 0.2, 0.1, 0.2, math.nan, 0.15])
    assert five.pairs == 5
    assert five.low == pytest.approx(0.15 - 2.776 * 0.05 / 5**0.5, rel=1e-3)
    assert math.isnan(figure([0.1]).low)


def test_means_of_heads_weigh_classes_by_their_tokens() -> None:
    metrics = found()["metrics"]
    assert metrics["losses of head 0"]["methods"]["rho1"]["value"] == pytest.approx(1.75)
    assert metrics["errors of head 1"]["methods"]["rho1"]["value"] == pytest.approx(0.9)
    assert metrics["value_explained_variance"]["methods"]["uniform"]["value"] is None
    assert "clamp_rate" not in metrics  # no cell has measured it


def test_failed_cells_are_listed_and_left_out() -> None:
    rows = [cell("uniform", 0), {**cell("uniform", 1), "ended": "failed", "error": "out of memory"}]
    made = table(rows, ("uniform",))
    assert made["metrics"]["exact_match"]["methods"]["uniform"]["pairs"] == 1
    assert made["failed"] == [
        {"method": "uniform", "seed": 1, "ended": "failed", "error": "out of memory"}
    ]
    assert made["verdicts"] == []


def test_the_page_shows_verdicts_and_measures(tmp_path: Path) -> None:
    rows = [cell(method, seed) for method in GAIN for seed in range(3)]
    preset = Preset(name="<made>", methods=tuple(GAIN), seeds=4)
    results = {
        "name": preset.name,
        "preset": preset.to_json(),
        "budget": 1e9,
        "reference_flops": 1e8,
        "finished": False,
        **table(rows, preset.methods),
        "rows": rows,
    }
    assert results["td_errors"] == {
        "critic": {**TD_ERRORS, "right": [0, 21, 9], "wrong": [3, 27, 0]}
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "wmtp.json").write_text("{}")
    page = write_report(tmp_path).read_text()
    assert "&lt;made&gt;" in page
    assert "<made>" not in page
    for part in (
        "exact match",
        "pass@10",
        "15 of 20",
        "good-cell",
        "loss of the reference",
        "75 %",
    ):
        assert part in page
    (tmp_path / "results.json").unlink()
    with pytest.raises(UserError, match="trainenv wmtp compare"):
        write_report(tmp_path)


@pytest.mark.parametrize("method", ["critic", "shuffled-critic", "random"])
def test_methods_spend_the_flops_of_uniform(method: str) -> None:
    budget = flops_of(config_of("uniform", SMALL, seed=0))
    config = config_of(method, SMALL, seed=0, budget=budget)
    assert flops_of(config) == pytest.approx(budget, rel=0.03)
    # Steps of the value head alone are cheaper, so that there are more of them.
    assert (config.steps > 60) is ("critic" in method)


def test_the_end_of_a_run_is_measured_about_its_trend() -> None:
    def steps(losses: list[float], **objective: float) -> list[Telemetry]:
        names = (
            "loss grad_norm_clipped clip_threshold clip_score lr lr_scale weight_decay"
            " weight_decay_scale progress data_index tokens steps_since_reset"
        )
        nothing: dict[str, Any] = dict.fromkeys(names.split(), 0)
        return [
            Telemetry(
                step=step,
                clip="none",
                grad_norm=2.0,
                objective={"loss_0": loss, **objective},
                **nothing,
            )
            for step, loss in enumerate(losses)
        ]

    falling = convergence(steps([2.0 * 0.9**step for step in range(40)]))
    assert falling["loss_variance"] == pytest.approx(0, abs=1e-12)
    assert falling["grad_norm"] == 2.0
    jumping = convergence(steps([2.0 + step % 2 for step in range(40)]))
    assert jumping["loss_variance"] > 0.01
    assert weights(steps([1.0] * 4))["weight_entropy"] == 1.0
    assert weights(steps([1.0] * 4, weight_entropy=0.5))["weight_entropy"] == 0.5


@pytest.mark.parametrize("name", ["quick", "learned", "full"])
def test_shipped_presets_fit_all_methods(name: str) -> None:
    preset = load_preset(name)
    for method in preset.methods:
        objective = METHODS[method]["objective"]
        if objective.get("weighting") not in ("rho1", "low_excess", "shuffled"):
            config = config_of(method, preset.run, seed=0)
            assert config.objective.kind == objective["kind"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 3\n", "did you mean 'seeds'"),
        ("methods: [unifrm]\n", "uniform"),
        ("methods: [uniform, uniform]\n", "each once"),
        ("evaluation: {sample: 3}\n", "did you mean 'samples'"),
        ("evaluation: {samples: 3, ks: [10]}\n", "number of samples, 3, found 10"),
        ("seeds: 0\n", "at least 1"),
    ],
)
def test_mistakes_in_a_preset_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_preset(path)


def test_evaluation_settings_keep_k_within_the_samples() -> None:
    assert EvaluationSettings(samples=100, ks=(1, 10, 100)).ks == (1, 10, 100)
    with pytest.raises(UserError, match="number of samples"):
        EvaluationSettings(samples=10, ks=(100,))
