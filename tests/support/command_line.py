"""Arguments and files of a small run from the command line, a stop that is asked for, and a mistake that costs one sentence."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainenv import cli
from trainenv.checkpoints.store import CheckpointStore
from trainenv.cli import main
from trainenv.run import TrainingRun
from trainenv.training.snapshots import fingerprint
from trainenv.types import Snapshot, Telemetry

SMALL: dict[str, Any] = {
    "device": "cpu",
    "steps": 24,
    "batch_size": 2,
    "model.context": 16,
    "validation.sequences": 4,
    "validation.every": 8,
    "monitor.block": 4,
    "schedule.warmup": 4,
}
RUN_FILES = [
    "config.yaml",
    "processes.jsonl",
    "report.html",
    "summary.json",
    "telemetry/part-00000.parquet",
    "validation.jsonl",
]
NOT_THE_FUTURE = ("ledger", "numerics", "statistics")


def sets(**more: Any) -> list[str]:
    """`SMALL` and more, as arguments; a double underscore stands for the dot."""
    values = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def files(folder: Path) -> list[str]:
    """All files but the checkpoints."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if not name.startswith("checkpoints/"))


def newest(folder: str | Path) -> Snapshot:
    """The checkpoint of a run that was saved last."""
    return CheckpointStore(Path(folder) / "checkpoints").load()


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with the content of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_one_sentence(
    arguments: Sequence[str], words: Sequence[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(folder)
    assert main(arguments) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trainenv: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert tree(folder) == before


def asks_to_stop_at(monkeypatch: pytest.MonkeyPatch, step: int, *, once: str = ".") -> None:
    """A SIGTERM to this very process once training has come to `step` and `once` is there, as a scheduler would send it."""
    advance = TrainingRun.advance
    sent: list[int] = []

    def advancing(run: TrainingRun, steps: int) -> list[Telemetry]:
        window = advance(run, steps)
        if run.step >= step and not sent and Path(once).exists():
            sent.append(run.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return window

    monkeypatch.setattr(TrainingRun, "advance", advancing)


def final(folder: str | Path) -> str:
    return fingerprint(newest(folder), NOT_THE_FUTURE)
