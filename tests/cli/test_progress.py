"""Progress in a notebook and in a pipe, and what objects of a run print about themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trainenv
from tests.support.command_line import SMALL
from trainenv.cli.progress import ProgressLine


def test_a_notebook_shows_one_line_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    updated: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            updated.append(data["text/plain"])

    def display(data: dict[str, str], **how: Any) -> Handle:
        assert how == {"raw": True, "display_id": True}
        shown.append(data["text/plain"])
        return Handle()

    module = ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    line = ProgressLine("mine", 3, quiet=True)
    line.err.is_jupyter = True
    for done in (1, 2, 3):
        line.update(done, 3, note="", line=f"step {done} of 3")
    assert shown == ["mine: step 1 of 3"]
    assert updated == ["mine: step 2 of 3", "mine: step 3 of 3"]


def test_progress_of_a_run_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainenv.TrainingRun.from_config("tiny", SMALL)
    assert repr(run) == "TrainingRun(step 0 of 24, no loss yet, LR × 1, zclip)"
    trainenv.train(run, tmp_path / "run", watch=trainenv.progress())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("tiny: step 24 of 24, loss ")
    run.apply(trainenv.Intervention(lr_scale=0.8, clip="arc"))
    loss = read_loss(tmp_path / "run")
    assert repr(run) == f"TrainingRun(step 24 of 24, loss {loss:.4g}, LR × 0.8, arc)"


def read_loss(path: Path) -> float:
    from trainenv.records.telemetry_log import read_telemetry

    return float(read_telemetry(path)["loss"].iloc[-1])


def test_folders_and_stores_describe_themselves(tmp_path: Path) -> None:
    assert repr(trainenv.RunFolder(tmp_path, line=2)) == f"RunFolder({str(tmp_path)!r}, line 2)"
    store = trainenv.CheckpointStore(tmp_path, every=50)
    assert repr(store) == (
        f"CheckpointStore({str(tmp_path)!r}, every 50 steps, 8 kept, moments 8bit)"
    )
