"""A folder for a run to be driven in."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainenv import TrainingConfig
from trainenv.records.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", TrainingConfig(steps=1))
