"""Through a file and into another process: a run goes on to the bit, for every way to train. The matrix is that of forks."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.training.test_fork import ARC, CONFIGS, SMALL, SPAM, STRESSED, go, made
from trainenv.checkpoints import file
from trainenv.types import Intervention

CHILD = """
import json, sys
from pathlib import Path
from trainenv import TrainingRun
from trainenv.checkpoints import file

for name, settings in json.loads(sys.argv[2]).items():
    path = Path(sys.argv[1]) / name
    snapshot = file.read(path)
    before = path.read_bytes()
    file.write(snapshot, path)
    run = TrainingRun.from_config("tiny", settings)
    run.restore(snapshot, exact=True)
    here = run.fingerprint()
    print(json.dumps([name, here, [repr(t) for t in run.advance(5)], run.fingerprint(), path.read_bytes() == before]))
"""
STEERED: dict[str, dict[str, Any]] = {
    "steered": {"model.dropout": 0.1, **ARC, "accumulation": 2},
    "steered, spam under stress": {**SPAM, **STRESSED},
    "steered, bf16": {"precision": "bf16"},
    "steered, fp16 and activation checkpointing": {
        "precision": "fp16",
        "model.activation_checkpointing": True,
    },
}
ALL = {**CONFIGS, **STEERED}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By configuration: what a run gave that never stopped, and what another process gave that read its file."""
    folder = tmp_path_factory.mktemp("exactness")
    expected, told = {}, {}
    for name, settings in ALL.items():
        run = made(settings)
        run.advance(7)
        if name in STEERED:
            run.flag([run.step + 3])
            run.apply(
                Intervention(
                    lr_scale=0.8,
                    clip="spam",
                    momentum_reset=True,
                    data_reorder=True,
                    skip_batch=True,
                )
            )
            run.advance(2)
        file.write(run.snapshot(), folder / name)
        here = run.fingerprint()
        expected[name] = [here, *go(run, 5), True]
    settings = json.dumps({name: {**SMALL, **settings} for name, settings in ALL.items()})
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), settings],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    for line in child.stdout.splitlines():
        name, *rest = json.loads(line)
        told[name] = (expected[name], rest)
    return told


@pytest.mark.parametrize("name", ALL)
def test_another_process_goes_on_from_the_file_to_the_bit(
    name: str, told: dict[str, tuple[Any, Any]]
) -> None:
    """Telemetry and fingerprint; and written once more, by that process, the file has the same bytes."""
    expected, found = told[name]
    assert found == expected
    assert len(found[1]) == 5
