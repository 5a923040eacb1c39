"""What a cell keeps of a run: the metrics of its folder, without what is told step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainenv.compare.cells import MEASURED

_ONE_BY_ONE = ("over_time",)  # in decisions


def measure_cell(folder: Path, /) -> dict[str, Any]:
    """The keys of `MEASURED`; see `trainenv.records.metrics` for what each is."""
    from trainenv.records.metrics import measure

    measured = measure(folder).to_json()
    row = {key: measured[key] for key in MEASURED}
    if row["decisions"] is not None:
        row["decisions"] = {
            key: value for key, value in row["decisions"].items() if key not in _ONE_BY_ONE
        }
    return row
