"""Files that earlier versions have written still load: a steered run's folder, interrupted and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trainenv import RunReport, TrainingRun
from trainenv.checkpoints.store import CheckpointStore
from trainenv.composition.default_loop import branching
from trainenv.config.schema import RunConfig
from trainenv.loop import resume, train
from trainenv.records.made_of import MadeOf
from trainenv.report import write_report

pytestmark = pytest.mark.filterwarnings("ignore:the key branching:FutureWarning")
OLD = Path(__file__).parents[1] / "files" / "old_run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the old folder, which is then written to."""
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_every_byte_of_an_old_checkpoint_is_sound(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints")
    assert store.steps() == [103]
    store.verify()


def test_an_old_steered_run_is_resumed_by_the_same_loop(folder: Path) -> None:
    """The text may be another than then (it is that of the Python which runs this); nothing else may count as changed."""
    run = TrainingRun.from_config(RunConfig.load(folder / "config.yaml"))
    callback = branching(planner="grid")
    before, now = MadeOf.read(folder), MadeOf.of(run, callback)
    assert before is not None
    assert [change for change in before.changes(now) if "corpus" not in change] == []
    reopened, snapshot = resume(folder, run, callback, accept_changes=True)
    assert snapshot.step == run.step == 103
    summary = train(run, reopened, callback=callback)
    assert summary["ended"] == "budget spent"
    events = [
        json.loads(line)
        for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    numbers = [
        event["detail"]["number"] for event in events if event["kind"] in ("decision", "skipped")
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 4


def test_an_old_folder_has_its_report(folder: Path, tmp_path: Path) -> None:
    report = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "accepted, of 2 verified" in report
    tree = " ".join(RunReport(folder).tree(width=400).split())
    assert "no branch holds up" in tree
