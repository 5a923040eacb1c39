"""The picture of a run is written whatever the run went through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainenv.config.schema import RunConfig
from trainenv.records.plot import plot_run
from trainenv.records.run_folder import RunFolder
from trainenv.types import Event, Reading, Telemetry, UserError

PNG = b"\x89PNG\r\n\x1a\n"


def telemetry(step: int, loss: float, threshold: float = 2.5) -> Telemetry:
    reading = Reading(0.0, 0.0, 0.0, 0.1, threshold, False)
    return Telemetry(step, step, 8, loss, 1.0, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0, reading=reading)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", RunConfig.load("tiny"))


def test_a_run_with_everything(folder: RunFolder, tmp_path: Path) -> None:
    folder.telemetry.append([telemetry(step, 3.0 - step / 100) for step in range(1, 51)])
    folder.validation(0, 3.1)
    folder.event(Event(50, "fired", {"index": 4.0}))
    for to in (30, 35):
        folder.rewound(to)
        folder.event(Event(50, "rewind", {"to": to, "lr_scale": 0.8}))
        folder.telemetry.append([telemetry(step, 2.5) for step in range(to + 1, 51)], line=folder.line)
    folder.validation(50, 2.4)
    folder.telemetry.flush()
    path = plot_run(folder.path, tmp_path / "deep" / "picture.png")
    assert path == tmp_path / "deep" / "picture.png"
    assert path.read_bytes()[:8] == PNG
    assert path.stat().st_size > 10_000


def test_the_ending_says_the_format(folder: RunFolder, tmp_path: Path) -> None:
    folder.telemetry.append([telemetry(1, 3.0), telemetry(2, 2.9)])
    folder.telemetry.flush()
    assert b"<svg" in plot_run(folder.path, tmp_path / "picture.svg").read_bytes()


@pytest.mark.parametrize("losses", [[3.0], [3.0] * 20, [3.0, math.nan, 2.9, math.nan]])
def test_short_constant_and_broken_losses(losses: list[float], folder: RunFolder, tmp_path: Path) -> None:
    folder.telemetry.append([telemetry(step, loss, math.inf) for step, loss in enumerate(losses, 1)])
    folder.telemetry.flush()
    assert plot_run(folder.path, tmp_path / "picture.png").read_bytes()[:8] == PNG


def test_nothing_to_draw(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected telemetry under"):
        plot_run(folder.path, tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()
