"""Records of a run: a folder with configuration, telemetry, events, checkpoints and summary.

    folder = RunFolder.create("runs/mine", config)
    rows = read_telemetry("runs/mine", kept_only=True)       # a data frame, a row a step

`run_folder` describes the files. `lineage` tells which steps rewinds and kills left behind,
`made_of` what a run was trained with, `metrics` turns a folder into comparable numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.records.decision_files import accepted_branch, read_decisions
    from trainenv.records.faults import each_once, faults_of
    from trainenv.records.made_of import MadeOf
    from trainenv.records.run_folder import (
        RunFolder,
        read_events,
        read_full_validation,
        read_validation,
    )
    from trainenv.records.telemetry_log import TelemetryLog, read_telemetry, telemetry_of

__all__ = [
    "MadeOf",
    "RunFolder",
    "TelemetryLog",
    "accepted_branch",
    "each_once",
    "faults_of",
    "read_decisions",
    "read_events",
    "read_full_validation",
    "read_telemetry",
    "read_validation",
    "telemetry_of",
]

__getattr__ = lazy(
    __name__,
    {
        "MadeOf": ".made_of",
        "RunFolder": ".run_folder",
        "TelemetryLog": ".telemetry_log",
        "accepted_branch": ".decision_files",
        "each_once": ".faults",
        "faults_of": ".faults",
        "read_decisions": ".decision_files",
        "read_events": ".run_folder",
        "read_telemetry": ".telemetry_log",
        "read_full_validation": ".run_folder",
        "read_validation": ".run_folder",
        "telemetry_of": ".telemetry_log",
    },
)
