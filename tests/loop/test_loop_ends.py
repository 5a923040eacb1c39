"""Every way for a driven run to end, and going on after a stop: the same run, and records that others read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.alarms import fires_at
from tests.support.driven_runs import Bigram, Rewinder, newest, tokens, toy
from tests.support.strict_json import strict
from trainenv import TrainingConfig, TrainingRun
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder, read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry
from trainenv.tools.json_lines import read_lines


def breaks_at(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, step: int, until: int = 10**9
) -> TrainingRun:
    """The loss is NaN while steps `step` to `until` are trained."""
    objective = run.objective

    def broken(model: nn.Module, micro: Any, /) -> Tensor:
        loss = objective(model, micro)
        return loss * math.nan if step <= run.step + 1 <= until else loss

    monkeypatch.setattr(run, "objective", broken)
    return run


def test_a_run_that_diverges_ends_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    fires_at(monkeypatch)
    summary = train(breaks_at(toy(40), monkeypatch, 11), folder)
    assert (summary["ended"], summary["step"]) == ("diverged", 16)
    assert summary["final_validation_loss"] is None
    assert summary["first_validation_loss"] == pytest.approx(math.log(8))
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary
    assert [e["kind"] for e in read_events(folder.path)] == ["diverged"]
    rows = read_telemetry(folder.path)
    assert list(rows["step"]) == list(range(1, 17))
    assert rows["loss"][:10].notna().all()
    assert not rows["loss"][10:].map(lambda value: value is not None and math.isfinite(value)).any()
    assert newest(folder).step == 16


def test_a_learning_rate_that_is_far_too_high(folder: RunFolder) -> None:
    def explosive(model: nn.Module, micro: Any, /) -> Tensor:
        return sum((p.double() ** 4).sum() for p in model.parameters()).float()  # type: ignore[union-attr]

    model = Bigram()
    nn.init.ones_(model.table.weight)
    config = TrainingConfig(
        steps=400,
        clip={"policy": "none"},
        schedule={"warmup": 0},
        monitor={"block": 8, "probe_every": 0},
        validation={"every": 5},
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    run = TrainingRun(model, optimizer, tokens, config, objective=explosive, validation=[tokens(0)])
    summary = train(run, folder)
    assert summary["ended"] == "diverged"
    assert summary["step"] <= 10
    assert summary["final_validation_loss"] is None
    assert read_events(folder.path)[-1]["kind"] == "diverged"


def test_a_loss_that_recovers_within_its_block_is_no_divergence(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    run = breaks_at(toy(40, clip={"policy": "zclip"}), monkeypatch, 11, 13)
    summary = train(run, folder)
    assert (summary["ended"], summary["step"]) == ("budget spent", 40)


def test_divergence_that_was_rewound_is_none(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    callback = Rewinder(at=16)
    run = toy(40)
    objective = run.objective

    def at_first(model: nn.Module, micro: Any, /) -> Tensor:
        return objective(model, micro) * (math.nan if run.step >= 10 and callback.at == 16 else 1.0)

    monkeypatch.setattr(run, "objective", at_first)
    summary = train(run, folder, callback=callback)
    assert (summary["ended"], summary["rewinds"], summary["step"]) == ("budget spent", 1, 32)
    assert math.isfinite(summary["final_validation_loss"])


def test_stop_is_asked_after_each_block_and_leaves_no_summary(folder: RunFolder) -> None:
    asked = iter([False, True])
    run = toy(40)
    summary = train(run, folder, stop=lambda: next(asked))
    assert (summary["ended"], summary["step"]) == ("interrupted", 16)
    assert not (folder.path / "summary.json").exists()
    assert newest(folder).step == 16
    assert [(e["kind"], e["step"]) for e in read_events(folder.path)] == [("interrupted", 16)]
    assert len(read_telemetry(folder.path)) == 16


@pytest.mark.parametrize("stops_after", [1, 2, 3, 6])
def test_resuming_in_another_process_gives_the_same_run(
    stops_after: int, folder: RunFolder, tmp_path: Path
) -> None:
    """The bits, and what the summary says of it: the ledger, the first validation."""
    asked = iter([False] * (stops_after - 1) + [True])
    train(toy(40, 12), folder, stop=lambda: next(asked))
    resumed, snapshot = RunFolder.resume(folder.path)
    run = toy(40, 12)
    run.restore(snapshot)
    run.ledger.load(snapshot.state["ledger"])
    summary = train(run, resumed)
    straight = toy(40, 12)
    alone = train(straight, RunFolder.create(tmp_path / "straight", straight.config))
    assert run.fingerprint() == straight.fingerprint()
    changing = {"folder": "", "seconds": 0, "ms_per_step": 0}
    assert summary | changing == alone | changing
    assert [v["step"] for v in read_validation(folder.path)] == [0, 12, 24, 36, 40]
    assert list(read_telemetry(folder.path, kept_only=True)["step"]) == list(range(1, 41))


def test_counts_and_first_validation_of_a_resumed_run_are_of_all_of_it(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    fires_at(monkeypatch, 3, 20, 22)
    run = toy(40)
    asked = iter([False, False, True])
    stopped = train(run, folder, callback=Rewinder(at=16), stop=lambda: next(asked))
    assert (stopped["ended"], stopped["step"], stopped["fired"], stopped["rewinds"]) == (
        "interrupted",
        16,
        1,
        1,
    )
    resumed, snapshot = RunFolder.resume(folder.path)
    run.restore(snapshot)
    summary = train(run, resumed)
    assert (summary["ended"], summary["step"], summary["fired"], summary["rewinds"]) == (
        "budget spent",
        32,
        3,
        1,
    )
    assert summary["first_validation_loss"] == pytest.approx(math.log(8))
    assert [record["step"] for record in read_lines(folder.path / "lines.jsonl")] == [8, 16]


def test_asked_to_stop_in_the_last_block(folder: RunFolder) -> None:
    run = toy(16)
    summary = train(run, folder, stop=lambda: run.done)
    assert (summary["ended"], summary["step"]) == ("budget spent", 16)
    assert read_events(folder.path) == []
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary


def test_a_run_that_diverges_leaves_json_that_others_read(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    """A lost loss is null: in the alarm that it fired, in the validation and in the summary."""
    fires_at(monkeypatch, 12)
    run = breaks_at(toy(40, 12), monkeypatch, 11, 12)
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda: math.nan if run.step == 12 else evaluate())
    assert train(run, folder)["ended"] == "diverged"
    paths = list(folder.path.glob("*.json*"))
    names = {"summary.json", "events.jsonl", "processes.jsonl", "validation.jsonl"}
    assert {path.name for path in paths} == names
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for record in text.splitlines() if path.suffix == ".jsonl" else [text]:
            strict(record)
    fired = next(event for event in read_events(folder.path) if event["kind"] == "fired")
    inside = {"layers": {"table": None}, "layer": "table", "layer_ratio": None}
    assert fired["detail"] == {"index": 9.0, "loss": None, **inside}


def test_a_validation_that_is_not_a_number_is_null(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    run = toy(16)
    monkeypatch.setattr(run, "evaluate", lambda: math.inf)
    summary = train(run, folder)
    assert (
        summary["ended"],
        summary["first_validation_loss"],
        summary["final_validation_loss"],
    ) == ("budget spent", None, None)
    assert [v["loss"] for v in read_validation(folder.path)] == [None, None]
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary


def test_driving_on_in_the_same_process(folder: RunFolder) -> None:
    run, asked = toy(40), iter([True])
    train(run, folder, stop=lambda: next(asked))
    assert train(run, folder)["step"] == 40
    assert list(read_telemetry(folder.path)["step"]) == list(range(1, 41))
    assert not (folder.path / "lines.jsonl").exists()


@pytest.mark.parametrize("place", [7, 8, 9, 16, 40])  # a block of telemetry is 8 steps long
def test_a_batch_without_labels_is_noted_and_gone_over(
    place: int, monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    run = masked(toy(40), monkeypatch, place, place)
    summary = train(run, folder)
    assert (summary["ended"], summary["step"]) == ("budget spent", 40)
    assert summary["faults"] == [{"reason": "the loss is not finite", "step": place, "times": 1}]
    assert math.isfinite(summary["final_validation_loss"])


def test_a_stretch_of_them_is_noted_once(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    summary = train(masked(toy(120), monkeypatch, 11, 50), folder)
    assert (summary["ended"], summary["step"]) == ("budget spent", 120)
    assert [
        event["step"] for event in read_events(folder.path) if event["kind"] == "non_finite"
    ] == [11]


def test_a_run_that_learns_nothing_for_long_has_diverged(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    """Its weights are finite, and nothing that is clean was looked at."""
    summary = train(masked(toy(200), monkeypatch, 11, 200), folder)
    assert (summary["ended"], summary["step"]) == (
        "diverged",
        64,
    )  # the end of the block in which 50 steps were without a loss


def test_unless_a_look_at_clean_data_says_that_it_has_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = toy(200, monitor={"block": 8, "probe_every": 4})
    run = TrainingRun(
        run.model,
        run.optimizer,
        tokens,
        run.config,
        validation=[tokens(10**6)],
        probe=tokens(10**6 + 1),
    )
    summary = train(
        masked(run, monkeypatch, 11, 190), RunFolder.create(tmp_path / "probed", run.config)
    )
    assert (summary["ended"], summary["step"]) == ("budget spent", 200)


def masked(run: TrainingRun, monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> TrainingRun:
    """No token has a label in the batches of these steps: the loss is NaN, and its gradient is 0."""
    objective = run.objective

    def blind(model: nn.Module, micro: Any, /) -> Tensor:
        loss = objective(model, micro)
        return (
            loss * 0.0 + math.nan if loss.requires_grad and first <= run.step + 1 <= last else loss
        )

    monkeypatch.setattr(run, "objective", blind)
    return run
