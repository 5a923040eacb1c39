"""Building over processes: the same bytes however it was interrupted, and one trunk's trouble is its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.toy_runs import CRASHES, FAILS, SMALL, Beside, make_run, make_run_or_not, trunks
from trainenv.types import UserError
from trainenv.worldmodel.dataset import Dataset, Progress, Run, generate

DESIGN = replace(SMALL, singles=1, sequences=1, replicated=0.0)
TRUNKS = trunks(4, seed=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    generate(folder, TRUNKS, make_run, design=DESIGN, workers=0)
    return folder


def shards(folder: Path) -> dict[str, bytes]:
    """Everything below `shards`, leftovers too."""
    files = (folder / "shards").rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def test_an_interrupted_build_goes_on_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    made = 0

    def stops_in_the_third(overrides: Mapping[str, Any]) -> Run:
        nonlocal made
        made += 1
        if made == 3:
            raise KeyboardInterrupt
        return make_run(overrides)

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, TRUNKS, stops_in_the_third, design=DESIGN, workers=0)
    assert len(Dataset.open(tmp_path).trunks) == 2
    (tmp_path / "shards" / f".{TRUNKS[0].name}.1.tmp").mkdir()  # what a kill leaves
    seen: list[Progress] = []
    order = list(reversed(TRUNKS))
    report = generate(tmp_path, order, make_run, design=DESIGN, workers=0, progress=seen.append)
    assert len(report.there) == len(report.made) == 2
    assert [p.done for p in seen] == [3, 4]
    assert seen[-1].seconds_left == 0
    assert shards(tmp_path).keys() == shards(whole).keys()
    written = shards(whole)
    assert [name for name, content in shards(tmp_path).items() if content != written[name]] == []
    assert generate(tmp_path, TRUNKS, make_run, design=DESIGN, workers=0).made == []


def test_stop_ends_it_between_trunks(tmp_path: Path) -> None:
    asked = iter([False, True])
    report = generate(
        tmp_path, TRUNKS, make_run, design=DESIGN, workers=0, stop=lambda: next(asked)
    )
    assert report.interrupted
    assert len(report.made) == 1


def test_a_process_that_dies_takes_its_trunk_alone(tmp_path: Path) -> None:
    report = generate(
        tmp_path / "there", TRUNKS, make_run_or_not, design=DESIGN, fold=Beside, workers=1
    )
    assert set(report.failed) == {TRUNKS[CRASHES].name, TRUNKS[FAILS].name}
    assert "exit code 7" in report.failed[TRUNKS[CRASHES].name]
    assert report.failed[TRUNKS[FAILS].name] == "RuntimeError: no such luck"
    assert sorted(report.made) == [TRUNKS[0].name, TRUNKS[1].name]
    assert report.steps > 0
    assert report.core_seconds > 0
    generate(tmp_path / "here", TRUNKS[:2], make_run, design=DESIGN, fold=Beside, workers=0)
    assert shards(tmp_path / "there") == shards(
        tmp_path / "here"
    )  # in a process of its own, too, and side by side


def test_ctrl_c_leaves_whole_shards_and_no_process(tmp_path: Path) -> None:
    code = """
import signal, sys
from trainenv.worldmodel.dataset import generate
from tests.support.toy_runs import make_run_slowly, SMALL, trunks
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits an ignored one
    generate(sys.argv[1], trunks(8), make_run_slowly, design=SMALL, progress=lambda p: print(p.trunk, flush=True))
"""
    script = tmp_path / "build.py"
    script.write_text(code)
    paths = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PATH": ""},
        start_new_session=True,
    )
    assert child.stdout is not None
    first = child.stdout.readline().strip()
    workers = _children(child.pid)
    os.killpg(child.pid, signal.SIGINT)  # a terminal sends it to all of them
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0
    assert errors.strip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    data = Dataset.open(tmp_path / "data")
    data.verify()
    assert first in set(data.trunks["trunk"])
    assert not list((tmp_path / "data" / "shards").glob(".*"))


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def test_what_cannot_be_built_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="top of a module"):
        generate(tmp_path, TRUNKS, lambda overrides: make_run(overrides), workers=1)
    with pytest.raises(
        UserError, match=r"fold must be a function at the top of a module, found .*lambda"
    ):
        generate(tmp_path, TRUNKS, make_run, fold=lambda runs: Beside(runs), workers=1)
    with pytest.raises(UserError, match="different names"):
        generate(tmp_path, [*TRUNKS, TRUNKS[0]], make_run, workers=0)
    with pytest.raises(UserError, match="another design"):
        generate(whole, TRUNKS, make_run, design=SMALL, workers=0)
    with pytest.raises(UserError, match="another trunk t00000"):
        generate(whole, trunks(1, seed=5), make_run, design=DESIGN, workers=0)
    wrongs: list[dict[str, Any]] = [
        {"horizon_share": 0.9},
        {"continued": 1.5},
        {"exhaustive": -0.1},
        {"singles": -1},
    ]
    for wrong in [*wrongs, {"fold": (48, 0)}, {"fold": (48,)}, {"divergence": 0.0}]:
        with pytest.raises(UserError, match=rf"{next(iter(wrong))} must be .*found"):
            replace(DESIGN, **wrong)
