"""The test loss at the end of a run, and evaluations of the whole validation part on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.bigram import Bigram, tokens
from tests.support.driven_runs import Rewinder, toy
from tests.support.strict_json import strict
from trainenv import RunConfig, TrainingConfig, TrainingRun
from trainenv.loop import Callback, resume, train
from trainenv.records.metrics import measure
from trainenv.records.run_folder import RunFolder, read_full_validation, read_validation
from trainenv.report import write_report
from trainenv.report.run import Facts, read_run

CONFIGURED: dict[str, Any] = {
    "steps": 30,
    "batch_size": 4,
    "model.width": 16,
    "model.context": 16,
    "schedule.warmup": 3,
    "validation": {"every": 10, "sequences": 4, "full_every": 20, "test_sequences": 50},
    "monitor.probe_every": 0,
}


def held_out_run(steps: int = 40, full_every: int = 0, every: int = 0) -> TrainingRun:
    """A run of a few thousand steps a second with a validation and a test set of its own."""
    model = Bigram()
    config = TrainingConfig(
        steps=steps,
        clip={"policy": "none"},
        monitor={"block": 8, "probe_every": 0},
        validation={"every": every, "full_every": full_every},
        schedule={"warmup": 0},
    )
    return TrainingRun(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        tokens,
        config,
        validation=[tokens(10**6)],
        full_validation=[tokens(10**6 + place) for place in range(3)],
        test=[tokens(10**7), tokens(10**7 + 1)],
    )


def test_the_summary_has_the_test_loss_of_the_last_weights(folder: RunFolder) -> None:
    run = held_out_run()
    summary = train(run, folder)
    assert summary["test_loss"] == run.test_loss() != summary["final_validation_loss"]
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary
    assert measure(folder.path).test_loss == summary["test_loss"]
    assert measure(folder.path).final_loss == summary["final_validation_loss"]


def test_a_run_without_a_test_set_has_no_test_loss(folder: RunFolder) -> None:
    summary = train(toy(), folder)
    assert not {"test_loss", "full_validation_loss"} & set(summary)
    assert math.isnan(measure(folder.path).test_loss)
    assert not (folder.path / "full_validation.jsonl").exists()


def test_the_test_costs_nothing_and_changes_nothing(tmp_path: Path) -> None:
    """Two runs of a configuration, one with a test: same bits, same ledger, same looks."""
    runs = []
    for sequences in (0, 50):
        config = RunConfig.load("tiny", CONFIGURED | {"validation.test_sequences": sequences})
        run = TrainingRun.from_config(config)
        folder = RunFolder.create(tmp_path / str(sequences), config)
        runs.append((train(run, folder), read_validation(folder.path)))
    (plain, looks), (measured, same) = runs
    assert plain["fingerprint"] == measured["fingerprint"]
    assert plain["flops"] == measured["flops"]
    assert looks == same
    assert 0 < measured["test_loss"] < math.log(256)
    assert "test_loss" not in plain


def test_an_interrupted_run_is_not_tested_until_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    run = held_out_run()
    with monkeypatch.context() as patch:
        patch.setattr(run, "test_loss", lambda: pytest.fail("this run can still be resumed"))
        summary = train(run, folder, stop=lambda: run.step >= 16)
    assert summary["ended"] == "interrupted"
    assert "test_loss" not in summary


def test_a_run_can_be_resumed_with_a_test_that_it_began_without(tmp_path: Path) -> None:
    begun = TrainingRun.from_config("tiny", CONFIGURED | {"validation.test_sequences": 0})
    folder = RunFolder.create(tmp_path / "run", begun.config)
    assert train(begun, folder, stop=lambda: begun.step >= 16)["ended"] == "interrupted"
    run = TrainingRun.from_config("tiny", CONFIGURED)
    folder, _ = resume(tmp_path / "run", run)
    assert folder.changes == ()
    summary = train(run, folder)
    straight = TrainingRun.from_config("tiny", CONFIGURED)
    straight.advance(30)
    assert summary["test_loss"] == straight.test_loss()


def test_a_diverged_run_is_tested_too_and_counts_as_a_uniform_guess(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    run = held_out_run(full_every=8)
    objective = run.objective

    def broken(model: nn.Module, micro: Any, /) -> Tensor:
        return objective(model, micro) * (math.nan if run.step >= 10 else 1)

    monkeypatch.setattr(run, "objective", broken)
    summary = train(run, folder)
    assert summary["ended"] == "diverged"
    assert summary["test_loss"] is summary["full_validation_loss"] is None
    assert (
        measure(folder.path).test_loss
        == measure(folder.path).final_loss
        == pytest.approx(run.uniform_loss)
    )


@dataclass
class Listener(Callback):
    """Remembers the losses that it was called with."""

    heard: list[tuple[int, float]] = field(default_factory=list)

    def on_evaluate(self, step: int, loss: float, /) -> None:
        self.heard.append((step, loss))


def test_the_whole_validation_part_is_evaluated_every_so_many_steps(folder: RunFolder) -> None:
    run, listener = held_out_run(steps=45, full_every=20, every=15), Listener()
    summary = train(run, folder, callback=listener)
    full, first = read_full_validation(folder.path), read_validation(folder.path)
    assert [v["step"] for v in full] == [20, 40, 45]
    assert [v["step"] for v in first] == [0, 15, 30, 45]
    assert summary["full_validation_loss"] == full[-1]["loss"] == run.evaluate_fully()
    assert summary["final_validation_loss"] == first[-1]["loss"] == run.evaluate()
    assert listener.heard == [(v["step"], v["loss"]) for v in first[1:]]
    one = 3 * run.flops_per_evaluation  # the whole part is three times as large
    assert summary["flops"]["evaluate"] == pytest.approx(4 * run.flops_per_evaluation + 3 * one)


def test_after_a_rewind_it_is_evaluated_again(folder: RunFolder) -> None:
    train(held_out_run(full_every=16), folder, callback=Rewinder(at=24))
    assert [v["step"] for v in read_full_validation(folder.path)] == [16, 16, 24]
    assert [v["line"] for v in read_full_validation(folder.path)] == [0, 1, 1]


def test_the_report_names_the_test_loss(folder: RunFolder) -> None:
    summary = train(held_out_run(full_every=20), folder)
    facts = Facts.of(read_run(folder.path))
    assert (facts.test_loss, facts.full_loss) == (
        summary["test_loss"],
        summary["full_validation_loss"],
    )
    said = f"test loss {summary['test_loss']:.3f}"
    assert said in facts.verdict
    page = write_report(folder.path).read_text(encoding="utf-8")
    assert said in page
    assert "Test loss" in page
    assert "Full validation loss" in page
