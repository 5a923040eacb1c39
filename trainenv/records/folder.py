"""The folder of one run: configuration, telemetry, events, the newest snapshot and the summary."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from trainenv import snapshots
from trainenv.config import TrainingConfig
from trainenv.records.lines import append_line, plain, read_lines
from trainenv.records.parquet import TelemetryLog
from trainenv.types import Event, Snapshot, UserError


class RunFolder:
    """Files of a run.

    | file | holds |
    |---|---|
    | `config.yaml` | the whole configuration |
    | `telemetry/part-*.parquet` | a row an optimizer step, see `configs/log_schema.json` |
    | `events.jsonl` | a JSON object an event, in order |
    | `validation.jsonl` | step, line and validation loss |
    | `lines.jsonl` | where history started anew: the number of each line after the first, and the step it starts from |
    | `last.safetensors` | the newest snapshot, to resume from |
    | `summary.json` | the result, once the run has ended |
    """

    def __init__(self, path: Path, line: int = 0) -> None:
        self.path, self.line = path, line
        self.telemetry = TelemetryLog(path / "telemetry")

    @classmethod
    def create(cls, path: Path | None, config: TrainingConfig) -> RunFolder:
        """A new folder: `path`, or the first free `runs/NAME`, `runs/NAME-2`, …

        Raises:
            UserError: `path` already holds something.
        """
        if path is None:
            path = next(free for free in _numbered(Path("runs") / config.name) if not free.exists())
        try:
            occupied = path.is_dir() and any(path.iterdir())
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} must be a folder to record in, found: {error.strerror}; give another --out") from None
        if occupied:
            raise UserError(f"{path} is not empty; give another --out, or --resume to go on with the run in it")
        (path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        return cls(path)

    @classmethod
    def resume(cls, path: Path) -> tuple[RunFolder, Snapshot]:
        """The folder of a run that stopped, and its newest snapshot. Once that is restored, call `new_line` before logging.

        Raises:
            UserError: there is nothing to resume, or the run had ended.
        """
        if (path / "summary.json").is_file():
            raise UserError(f"the run in {path} has ended; give another --out for a new one")
        if not (path / "last.safetensors").is_file():
            raise UserError(
                f"expected an interrupted run with a last.safetensors in {path}, found none; leave out --resume to start one"
            )
        snapshot = snapshots.load(path / "last.safetensors")
        lines = [record["line"] for record in read_lines(path / "lines.jsonl")]
        return cls(path, line=max(lines, default=0)), snapshot

    def new_line(self, step: int) -> None:
        """History starts anew from `step`."""
        self.line += 1
        append_line(self.path / "lines.jsonl", {"line": self.line, "step": step})

    def event(self, event: Event) -> None:
        """Note an event at once, so that it survives whatever comes next."""
        append_line(self.path / "events.jsonl", {"line": self.line, **asdict(event)})

    def validation(self, step: int, loss: float) -> None:
        append_line(self.path / "validation.jsonl", {"line": self.line, "step": step, "loss": loss})

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the one to resume from, with the telemetry up to it on disk."""
        self.telemetry.flush()
        snapshots.save(snapshot, self.path / "last.safetensors")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run has ended."""
        self.telemetry.flush()
        temporary = self.path / ".summary.tmp"
        temporary.write_text(json.dumps(plain(summary), indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path / "summary.json")


def _numbered(path: Path) -> Iterator[Path]:
    """`path`, `path-2`, `path-3`, …"""
    yield path
    for count in itertools.count(2):
        yield path.with_name(f"{path.name}-{count}")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a run's folder, in order."""
    return read_lines(path / "events.jsonl")


def read_validation(path: Path) -> list[dict[str, Any]]:
    """Step, line and loss of each validation of a run's folder, in order."""
    return read_lines(path / "validation.jsonl")
