"""The table of methods: what each costs, what it leaves on record, and that a divergence loses nothing."""

from __future__ import annotations

import math
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from trainenv import RunConfig, TrainingRun
from trainenv.composition.methods import METHODS
from trainenv.config.presets import find, read_yaml
from trainenv.records.run_folder import read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry

NERVOUS = read_yaml(find("uncertainty")) | {
    "window": 32,
    "min_history": 16,
    "lenient": 1.0,
    "refractory": 3,
}
SMALL: dict[str, Any] = {
    "steps": 80,
    "batch_size": 4,
    "reset_warmup": 4,
    "model": {"width": 16, "layers": 1, "heads": 1, "context": 16},
    "schedule.warmup": 10,
    "validation": {"every": 40, "sequences": 4},
    "checkpoints": {"every": 50, "moments": "exact"},
    "monitor": {"block": 6, "probe_every": 8, "uncertainty": NERVOUS},
    "clip.policy": "none",
    "stressors.planted": [{"at": 50, "kind": "lr_spike", "steps": 3, "size": 100}],
}
CONFIG = RunConfig.load("tiny", SMALL)
LOST = RunConfig.load(
    CONFIG, {"stressors.planted": [{"at": 50, "kind": "lr_spike", "steps": 3, "size": 1e30}]}
)
OURS = (
    *(
        "nothing",
        "zclip",
        "arc",
        "spam",
        "skip_step",
        "adagc",
        "gradient_stabilizer",
        "clip-1.0",
        "palm",
        "opt",
        "pbt",
        "pb2",
        "autolrs",
        "tuned",
    ),
    *("static-0.1", "static-0.3", "static-1", "static-3"),
)
REWINDING = ("palm", "opt")


def ran(name: str, path: Path, config: RunConfig = CONFIG) -> dict[str, Any]:
    return METHODS[name](config, path, lambda run, window: None, lambda: False)


@cache
def per_evaluation() -> float:
    return TrainingRun.from_config(CONFIG).flops_per_evaluation


def cost(summary: dict[str, Any], path: Path) -> float:
    """All FLOPs but those of the validations that every run has, and of looks at its alarms."""
    events = path / "events.jsonl"
    looks = 0
    if events.exists():
        looks = events.read_text().count('"attention_logit"')
    outside = len(read_validation(path)) * per_evaluation() + looks * per_step() / 3
    return sum(summary["flops"].values()) - outside


def per_step() -> float:
    return TrainingRun.from_config(CONFIG).flops_ahead


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    path = tmp_path_factory.mktemp("nothing") / "run"
    return ran("nothing", path), path


def test_all_are_there_and_can_be_sent_to_other_processes() -> None:
    assert set(OURS) <= set(METHODS)
    assert set(pickle.loads(pickle.dumps(METHODS))) == set(METHODS)


@pytest.mark.parametrize("name", OURS[1:])
def test_costs_what_doing_nothing_does(
    name: str, nothing: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """At most a hundredth more, and not much less either: the budget is used, and the run ends annealed."""
    most, path = cost(*nothing), tmp_path / "run"
    summary = ran(name, path)
    assert 0.97 * most <= cost(summary, path) <= 1.01 * most
    assert summary["ended"] == "budget spent"
    assert math.isfinite(summary["final_validation_loss"])
    assert bool(summary["rewinds"]) == (name in REWINDING)
    kept = read_telemetry(path, kept_only=True)
    assert list(kept["step"]) == list(range(1, summary["step"] + 1))
    assert kept["progress"].iloc[-1] > 0.8
    if name != "tuned":  # its tries are too short for it
        assert read_yaml(path / "config.yaml")["schedule"]["warmup"] == CONFIG.schedule.warmup


def test_static_methods_differ_in_the_learning_rate_alone(tmp_path: Path) -> None:
    config = RunConfig.load(CONFIG, {"steps": 12})
    rows = {
        name: ran(name, tmp_path / name, config) and read_telemetry(tmp_path / name)
        for name in ("nothing", "static-0.3")
    }
    assert list(rows["static-0.3"]["lr"]) == pytest.approx(
        [0.3 * lr for lr in rows["nothing"]["lr"]]
    )
    assert list(rows["static-0.3"]["data_index"]) == list(rows["nothing"]["data_index"])


@pytest.mark.parametrize(
    ("name", "clip", "threshold"), [("spam", "spam", None), ("clip-1.0", "none", 1.0)]
)
def test_clip_policies_are_in_force_from_the_first_step_on(
    name: str, clip: str, threshold: float | None, tmp_path: Path
) -> None:
    ran(name, tmp_path / "run", RunConfig.load(CONFIG, {"steps": 12}))
    rows = read_telemetry(tmp_path / "run")
    assert set(rows["clip"]) == {clip}
    assert threshold is None or set(rows["clip_threshold"]) == {threshold}


# ── a run that is lost ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["nothing", "opt", "pbt", "tuned"])
def test_a_run_that_diverges_is_on_record(name: str, tmp_path: Path) -> None:
    """Whatever was trained and spent until then. Those that rewind come by the same step again; short runs may end before it."""
    path = tmp_path / "run"
    summary = ran(name, path, LOST)
    rows, events = read_telemetry(path), [event["kind"] for event in read_events(path)]
    assert summary["ended"] == ("diverged" if "diverged" in events else "budget spent")
    assert (path / "summary.json").is_file()
    if name in ("nothing", "opt"):
        assert summary["ended"] == "diverged"
    if summary["ended"] == "diverged":
        assert summary["final_validation_loss"] is None
        assert not math.isfinite(rows["loss"].fillna(math.nan).iloc[-1])
    flops = summary["flops"]
    step = TrainingRun.from_config(LOST).flops_ahead
    assert flops["main"] + flops["rewound"] == pytest.approx(len(rows) * step)
    assert all(value >= 0 for value in flops.values())


def test_it_stops_when_it_is_told(tmp_path: Path) -> None:
    for name in ("pbt", "tuned"):
        summary = METHODS[name](CONFIG, tmp_path / name, lambda run, window: None, lambda: True)
        assert summary["ended"] == "interrupted"
        assert not (tmp_path / name / "summary.json").exists()
