"""Every notebook runs without the network, and is kept with the outputs of a whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SAID = {  # what a reader is there to see
    "attach_own_loop": ["rolled back", "skipped the batches", "held-out loss"],
    "environment_and_planner": ["five random decisions", "decision", "left alone"],
    "save_fork_compare": ["the fork that did nothing: True", "again from the snapshot: True"],
}
# Imported by each process when it starts.
NO_NETWORK = """
import socket
def refuse(self, address):
    raise OSError(f"a test may not connect to {address}")
socket.socket.connect = refuse
"""


def cells(path: Path) -> list[dict[str, Any]]:
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]


def said(path: Path) -> str:
    """All text that a notebook has printed."""
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return "\n".join(
        "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        for output in outputs
    )


def test_every_notebook_is_looked_at() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_was_run_from_top_to_bottom(path: Path) -> None:
    assert path.stat().st_size < 50_000
    assert [cell["execution_count"] for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    assert [what for what in SAID[path.stem] if what not in said(path)] == []
    warned = [
        "".join(output["text"])
        for cell in cells(path)
        for output in cell["outputs"]
        if output.get("name") == "stderr"
    ]
    assert [text for text in warned if not text.startswith("trainenv: ")] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "docs/_site/notebooks.py", path.stem, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    again = tmp_path / path.name
    assert [cell["source"] for cell in cells(again)] == [cell["source"] for cell in cells(path)]
    assert [what for what in SAID[path.stem] if what not in said(again)] == []
