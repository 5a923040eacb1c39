"""The whole loop on a T5 and on reversible blocks: steered, rolled back, stopped and resumed to the bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.steered_runs import HIGHER, LOWER, NOTHING, Promising, Pupil
from trainenv.agents.branching import Branching, rollback, triggers
from trainenv.compare.allowed_flops import allowance
from trainenv.loop import resume, train
from trainenv.records.decision_files import read_decisions
from trainenv.records.run_folder import RunFolder, read_events
from trainenv.rollouts import reason_not_folded
from trainenv.rollouts.executor import Rollouts
from trainenv.rollouts.folded import Folded
from trainenv.run import TrainingRun
from trainenv.types import UserError

SMALL: dict[str, Any] = {
    "steps": 140,
    "batch_size": 4,
    "model": {"width": 16, "layers": 2, "heads": 2, "context": 32},
    "schedule.warmup": 10,
    "validation": {"every": 40, "sequences": 8, "test_sequences": 8},
    "monitor": {"block": 4, "probe_every": 1, "probe_sequences": 4},
}
STEERED: dict[str, Any] = SMALL | {
    "optimizer.lr": 1e-2,
    "clip.policy": "none",
    "checkpoints": {"every": 24, "moments": "exact"},
    "stressors.planted": [{"at": 40, "kind": "lr_spike", "steps": 10, "size": 40}],
    "branching": {
        "every": 24,
        "rewind": 16,
        "save_every": 8,
        "horizon": 32,
        "verify_steps": 3,
        "refractory_steps": 12,
        "max_waste": 0.4,
        "min_gain": 0.0,
        "cut_gain": 0.0,
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "t5": {"model.architecture": "t5"},
    "reversible": {"model.blocks": "reversible", "model.dropout": 0.1},
}


def made(name: str, settings: dict[str, Any]) -> TrainingRun:
    return TrainingRun.from_config("tiny", {**settings, **MODELS[name]})


def callback() -> Branching:
    return Branching(
        planner=Promising(sequences=((LOWER, HIGHER), (HIGHER,))),
        model=Pupil(),
    )


def came_to(run: TrainingRun, path: Path) -> dict[str, Any]:
    decisions = read_decisions(path)
    for decision in decisions:
        decision["planner"]["seconds"] = 0
    events = [(event["step"], event["kind"]) for event in read_events(path)]
    return {
        "fingerprint": run.fingerprint(),
        "decisions": decisions,
        "flops": run.ledger.as_dict(),
        "events": [event for event in events if event[1] != "interrupted"],
        "losses": (run.evaluate(), run.test_loss()),
    }


@pytest.mark.parametrize("name", MODELS)
def test_steered_and_resumed_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "_HEALS", 0.0)  # so that one is rewound, whatever it gains
    monkeypatch.setattr(rollback, "_MARGIN", 0.01)
    run = made(name, STEERED)
    train(run, RunFolder.create(tmp_path / "whole", run.config), callback=callback())
    expected = came_to(run, tmp_path / "whole")
    kinds = [kind for _, kind in expected["events"]]
    assert "rewind" in kinds
    assert run.ledger.as_dict()["verify"] > 0
    path = tmp_path / "stopped"
    first = made(name, STEERED)
    folder = RunFolder.create(path, first.config)
    train(first, folder, callback=callback(), stop=lambda: first.step >= 44)
    again, steering = made(name, STEERED), callback()
    folder, _ = resume(path, again, steering)
    train(again, folder, callback=steering)
    assert 44 <= first.step < again.step
    assert came_to(again, path) == expected


def test_branches_of_a_t5_in_other_processes_have_the_same_bits() -> None:
    outcomes = []
    for workers in (0, 2):
        run = made("t5", SMALL)
        run.advance(8)
        rollouts = Rollouts(run, decision_steps=6, cooldown=3, workers=workers)
        found = rollouts.run([(NOTHING,), (LOWER,)], 12, measure="annealed")
        rollouts.adopt((LOWER,), 12)
        outcomes.append(([asdict(one) for one in found], run.fingerprint()))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("name", "kind"), [("t5", "T5"), ("reversible", "ReversibleGPT2")])
def test_they_are_not_folded(name: str, kind: str) -> None:
    run = made(name, SMALL)
    with pytest.raises(UserError, match=f"needs a GPT-2 of ours, found {kind}; train it by itself"):
        Folded([run.fork(), run.fork()])
    assert reason_not_folded(run) == (
        "branches are trained in turn or in worker processes: to be folded, a run needs a GPT-2 of"
        f" ours, found {kind}"
    )
    assert not reason_not_folded(TrainingRun.from_config("tiny", SMALL))
    wide = {"model.width": 64, "precision": "bf16"}
    assert not reason_not_folded(TrainingRun.from_config("tiny", {**SMALL, **wide}))


@pytest.mark.parametrize("name", MODELS)
def test_the_allowed_compute_is_what_a_run_spends(name: str, tmp_path: Path) -> None:
    text = {"corpus.max_tokens": 160_000, "validation.full_every": 12}
    run = made(name, {**SMALL, **text, "steps": 24})
    train(run, RunFolder.create(tmp_path / "run", run.config))
    assert run.ledger.total == pytest.approx(allowance(run.config), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_the_monitor_reads_them(name: str) -> None:
    run = made(name, SMALL)
    step = run.advance(4)[-1]
    assert step.probe_loss > 0
    assert step.shortcut_ratio > 0
    assert 0 < step.activation_entropy < 1
    assert (step.attention_entropy == step.attention_entropy) is (name != "t5")


def test_a_t5_learns_more_than_the_frequencies_of_tokens() -> None:
    run = TrainingRun.from_config("t5-tiny", {"steps": 100, "validation.sequences": 64})
    labels = torch.cat([micro["labels"].flatten() for micro in run._validation])
    counts = torch.bincount(labels, minlength=run.vocabulary or 0).double()
    shares = counts / counts.sum()
    unigram = float(torch.special.entr(shares).sum())  # no guess by frequency alone is better
    assert run.evaluate() > unigram
    run.advance(100)
    assert run.evaluate() < unigram - 0.2


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_a_run_has_the_same_bits_with_activation_checkpointing(architecture: str) -> None:
    found = []
    for mode in (False, True, "sqrt"):
        more = {
            "model.architecture": architecture,
            "model.layers": 3,
            "model.dropout": 0.1,
            "model.activation_checkpointing": mode,
        }
        run = TrainingRun.from_config("tiny", {**SMALL, **more})
        found.append(([repr(step) for step in run.advance(6)], run.fingerprint()))
    assert found[0] == found[1] == found[2]
