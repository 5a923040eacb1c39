"""The folder of one run: configuration, telemetry, events, checkpoints and the summary."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from trainenv.checkpoints import FOLDER
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import CheckpointConfig, TrainingConfig
from trainenv.records.lineage import last_saved
from trainenv.records.telemetry_log import TelemetryLog
from trainenv.tools.json_lines import append_line, plain, read_lines
from trainenv.tools.paths import expanded
from trainenv.types import Event, Snapshot, UserError

REWINDS = "rewinds"  # part of a checkpoint: how many of them lie behind it, if any


class RunFolder:
    """Files of a run.

    | file | holds |
    |---|---|
    | `config.yaml` | the whole configuration |
    | `telemetry/part-*.parquet` | a row an optimizer step, see `configs/log_schema.json` |
    | `events.jsonl` | a JSON object an event, in order |
    | `validation.jsonl` | step, line and validation loss |
    | `lines.jsonl` | where history started anew: number of the line, the step it starts from, and the rewinds behind it |
    | `checkpoints/cp_STEP.ptz` | the state at a step, to resume from |
    | `checkpoints/made_of.json` | what the run is trained with, see `records.resuming` |
    | `summary.json` | the result, once the run has ended |
    """

    def __init__(self, path: Path, line: int = 0, rewinds: int = 0) -> None:
        self.path = path
        self.line = line
        self.rewinds = rewinds
        self.telemetry = TelemetryLog(path / "telemetry")
        self.flags: tuple[str, ...] = ()  # of `trainenv run`, that make who steers
        self.changes: (
            tuple[str, ...] | None
        ) = ()  # since the run was saved, in words; None: that can't be told
        self._resumed: list[str] | None = (
            None  # digests of the checkpoints there were, for a run that goes on
        )

    @classmethod
    def create(cls, path: str | Path | None, config: TrainingConfig) -> RunFolder:
        """A new folder: `path`, or the first free `runs/NAME`, `runs/NAME-2`, … No two processes are given the same.

        Raises:
            UserError: `path` already holds something.
        """
        wanted = Path("runs") / config.name if path is None else expanded(path)
        try:
            if path is None:
                folder = _made_first(wanted)
            else:
                folder = wanted
                folder.mkdir(parents=True, exist_ok=True)
            occupied = any(folder.iterdir())
        except OSError as error:
            raise UserError(
                f"{wanted} must be a folder to record in, found: {error.strerror}; give another --out"
            ) from None
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        try:
            if not occupied:
                with (folder / "config.yaml").open("x", encoding="utf-8") as file:
                    file.write(text)
        except FileExistsError:  # another process has just begun there
            occupied = True
        except OSError as error:
            raise UserError(
                f"{folder} must be a folder to record in, found: {error.strerror}; give another --out"
            ) from None
        if occupied:
            raise UserError(
                f"{folder} is not empty; give another --out, or --resume to go on with the run in it"
            )
        return cls(folder)

    @classmethod
    def resume(cls, path: str | Path) -> tuple[RunFolder, Snapshot]:
        """The folder of a run that stopped, however it did, and its newest whole checkpoint.

        Nothing is written yet.

        Raises:
            UserError: there is nothing to resume, or the run had ended.
        """
        path = expanded(path)
        if (path / "summary.json").is_file():
            raise UserError(f"the run in {path} has ended; give another --out for a new one")
        store = CheckpointStore(path / FOLDER)
        if not store.folder.is_dir() or not store.steps():
            early = (
                " and delete the folder: the run in it stopped before its first one"
                if (path / "config.yaml").is_file()
                else ""
            )
            raise UserError(
                f"expected an interrupted run with checkpoints in {path}, found none; leave out --resume to start one{early}"
            )
        digests = _digests(store)
        snapshot = store.load()
        lines = [record["line"] for record in read_lines(path / "lines.jsonl")]
        folder = cls(path, line=max(lines, default=0), rewinds=int(snapshot.state.get(REWINDS, 0)))
        folder._resumed = digests
        return folder, snapshot

    @contextmanager
    def recording(self, step: int, config: CheckpointConfig) -> Iterator[CheckpointStore]:
        """The run's checkpoints, for as long as this process alone records here.

        A resumed run starts a new line at `step`.

        Raises:
            UserError: another process records here, or has gone on with the run since it was read.
        """
        with CheckpointStore(self.path / FOLDER, **config.model_dump()) as store:
            if self._resumed is not None:
                if _digests(store) != self._resumed:
                    raise UserError(
                        f"another process has gone on with the run in {self.path} just now; resume it again"
                    )
                self._resumed = None
                self._new_line(step)
            yield store

    def rewound(self, step: int) -> None:
        """The run went back to `step`, and history starts anew from there."""
        self.rewinds += 1
        self._new_line(step)

    def _new_line(self, step: int) -> None:
        self.line += 1
        append_line(
            self.path / "lines.jsonl", {"line": self.line, "step": step, "rewinds": self.rewinds}
        )

    def event(self, event: Event) -> None:
        """Note an event at once, so that it survives whatever comes next."""
        append_line(self.path / "events.jsonl", {"line": self.line, **asdict(event)})

    def validation(self, step: int, loss: float) -> None:
        append_line(self.path / "validation.jsonl", {"line": self.line, "step": step, "loss": loss})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run has ended."""
        self.telemetry.flush()
        temporary = self.path / ".summary.tmp"
        temporary.write_text(json.dumps(plain(summary), indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path / "summary.json")


def _digests(store: CheckpointStore) -> list[str]:
    return [entry.digest for entry in store.entries()]


def _made_first(path: Path) -> Path:
    """The first of `path`, `path-2`, `path-3`, … that this process, and no other, has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for count in itertools.count(1):
        free = path if count == 1 else path.with_name(f"{path.name}-{count}")
        try:
            free.mkdir()
        except FileExistsError:
            continue
        return free
    raise AssertionError("there is always another number")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a run's folder, in order, but for those that were lost with a process, and came again."""
    saved = last_saved(read_lines(path / "lines.jsonl"))
    return [
        event
        for event in read_lines(path / "events.jsonl")
        if _at(event) <= saved.get(event.get("line", 0), math.inf)
    ]


def _at(event: Mapping[str, Any]) -> float:
    """The step of its line that an event belongs to; a rewind tells the one that was seen, on the line before."""
    step = event.get("step", -math.inf)
    return float(event.get("detail", {}).get("to", step) if event.get("kind") == "rewind" else step)


def read_validation(path: Path) -> list[dict[str, Any]]:
    """Step, line and loss of each validation of a run's folder, in order."""
    return read_lines(path / "validation.jsonl")
