"""Every example runs as it stands, says something, and leaves nothing behind."""

from __future__ import annotations

import re
import runpy
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEEDS = {
    "attach_accelerate": "accelerate",
    "attach_huggingface": "accelerate",
    "attach_lightning": "lightning",
}
SAID = {  # what a reader is there to see
    "attach_accelerate": ["kept", "of the schedule"],
    "attach_huggingface": [
        "branching may train at most 30 further steps",
        "kept 100 steps",
        "of the schedule",
    ],
    "attach_lightning": ["kept", "of the schedule"],
    "attach_own_loop": [
        "rules may train at most",
        "to keep 300",
        "rolled back",
        "held-out loss",
    ],
    "gymnasium_api": [
        "masked ['clip']",
        "accepted, of 1 verified",
        "the budget is spent",
        "report.html",
    ],
    "own_comparison": ["nothing: loss", "cut_early: loss"],
    "own_loop": [
        "steering costs at most 40 steps",
        "alarm",
        "left alone",
        "steered",
        "clipping by zclip",
    ],
    "own_model": ["left alone"],
    "own_planner_and_agent": [
        "the planner keeps its promises",
        "thermostat",
        "loop",
        "the budget is spent",
    ],
}


def test_every_example_is_looked_at() -> None:
    assert {path.stem for path in EXAMPLES} == set(SAID)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    package = NEEDS.get(path.stem)
    if package is not None and find_spec(package) is None:
        with pytest.raises(ImportError, match=package):
            runpy.run_path(str(path), run_name="__main__")
        return
    runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    assert [what for what in SAID[path.stem] if what not in said] == []
    assert "nan" not in said.split()
    left = [*here.iterdir(), *temporary.iterdir()]
    assert [
        found.name for found in left if not found.name.startswith("torchinductor")
    ] == []  # a cache of torch's own
    if (
        path.stem == "gymnasium_api"
    ):  # the snapshot brings back the past, to every digit that is printed
        alone, again = (
            re.search(rf"{words} ([\d.]+)", said)
            for words in ("left alone", "once more from the snapshot")
        )
        assert alone is not None
        assert again is not None
        assert alone[1] == again[1]
