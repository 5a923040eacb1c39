"""A run as its folder shows it, read again and again: each time only what is new."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from trainenv.records import live_log
from trainenv.records.decision_files import NAME as DECISION
from trainenv.records.decision_files import is_complete
from trainenv.records.run_folder import without_lost
from trainenv.records.telemetry_log import read_part
from trainenv.tools.error_text import describe_error
from trainenv.types import UserError
from trainenv.watch.steps import COLUMNS, Steps
from trainenv.watch.tailing import Tail

_UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError),
    *(yaml.YAMLError, pa.ArrowException),
)
_PART = re.compile(r"part-\d+\.parquet")
_PARTS_AT_ONCE = 2000  # most parts of the telemetry that one call reads


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Newest sign of life of the process that trains.

    Attributes:
        host: Name of its machine.
        pid: Process id.
        written: Time at which the process wrote it, by its own clock, seconds.
        seen: Time at which it was read here, by the monotonic clock of this process, seconds.
        step: Step of the run.
        end: Step at which the budget is spent.
        flops: FLOPs so far, by purpose.
    """

    host: str
    pid: int
    written: float
    seen: float
    step: int
    end: int
    flops: Mapping[str, float]


class RunReader:
    """The run in a folder, as far as it was read.

    Args:
        folder: Folder of the run. Another process, or another machine, may be writing to it.

    Raises:
        UserError: The folder is not that of a run.

    Attributes:
        config: Configuration; empty if it can't be read.
        summary: Summary of a run that has ended; else None.
        steps: Telemetry.
        begun: Records of `lines.jsonl`.
        validation: Validation losses, with their steps and lines.
        decisions: Decisions by the name of their folder.
        deciding: Flag: a decision was begun and is not recorded yet.
        heartbeat: Newest sign of life; None without one.
        ticking: Flag: a sign of life has arrived since the first reading.
        beating: Flag: the process that trains has not ended in an orderly way.
        pace: Recent (time, step) pairs by the clock of the run, for the time left.
        notes: Files that can't be read, each with the reason.
        version: Counter that rises whenever something is new.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_begun(folder):
            raise UserError(
                f"expected the folder of a run in {folder}, found {_found(folder)}; "
                "give one that trainenv records in"
            )
        self.version = 0
        self._identity: Any = None
        self._reset()

    def _reset(self) -> None:
        """Forget everything that was read."""
        folder = self.folder
        self.config: Mapping[str, Any] = {}
        self.summary: Mapping[str, Any] | None = None
        self.steps = Steps()
        self.begun: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        self.decisions: dict[str, dict[str, Any]] = {}
        self.deciding = False
        self.heartbeat: Heartbeat | None = None
        self.ticking = False
        self.beating = False
        self.pace: list[tuple[float, int]] = []
        self.notes: dict[str, str] = {}
        self._all_events: list[dict[str, Any]] = []
        self._head: Mapping[str, Any] = {}
        self._part = -1
        self._summary_time = -1
        self._lines = Tail(folder / "lines.jsonl")
        self._events = Tail(folder / "events.jsonl")
        self._validation = Tail(folder / "validation.jsonl")
        self._live = Tail(folder / live_log.NAME)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events so far, without those that a kill has lost."""
        return without_lost([one for one in self._all_events if _is_event(one)], self.begun)

    def poll(self) -> bool:
        """Read what is new; return True if there was something."""
        found = [
            self._try("config.yaml", self._read_config),
            self._try("lines.jsonl", lambda: self._read_tail(self._lines, self.begun)),
            self._try("events.jsonl", lambda: self._read_tail(self._events, self._all_events)),
            self._try(
                "validation.jsonl", lambda: self._read_tail(self._validation, self.validation)
            ),
            self._try("telemetry", self._read_parts),
            self._try(live_log.NAME, self._read_live),
            self._try("branches", self._read_decisions),
            self._try("summary.json", self._read_summary),
        ]
        if any(found):
            self.version += 1
        return any(found)

    def _try(self, name: str, read: Callable[[], bool]) -> bool:
        """Read one kind of file; note the reason if it can't be read."""
        before = self.notes.pop(name, None)
        try:
            return read() or before is not None
        except _UNREADABLE as error:
            self.notes[name] = _reason(error)
            return self.notes[name] != before

    def _read_config(self) -> bool:
        """Read the configuration once. Another file in its place means another run."""
        path = self.folder / "config.yaml"
        found = path.stat()
        identity = (found.st_ino, found.st_mtime_ns)
        if identity == self._identity:
            return False
        self._reset()
        self._identity = identity
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("expected keys and values")
        self.config = config
        return True

    def _read_tail(self, tail: Tail, into: list[dict[str, Any]]) -> bool:
        records = tail.read()
        if tail.replaced:
            into.clear()
        into += records
        return bool(records)

    def _read_parts(self) -> bool:
        """Read the parts of the telemetry that are new. One that is damaged is left out."""
        folder = self.folder / "telemetry"
        if not folder.is_dir():
            return False
        numbers = sorted(
            (int(name[5:-8]), name)
            for name in os.listdir(folder)
            if _PART.fullmatch(name) and int(name[5:-8]) > self._part
        )
        for number, name in numbers[:_PARTS_AT_ONCE]:
            try:
                table = read_part(folder / name, ["line", "purpose", "step", *COLUMNS])
            except (pa.ArrowException, ValueError, KeyError) as error:
                self.notes[f"telemetry/{name}"] = _reason(error)
            else:
                self.steps.add(_columns(table), firm=True)
            self._part = number
        return bool(numbers)

    def _read_live(self) -> bool:
        records = self._live.read()
        before = self.beating
        self.beating = self._live.path.exists()
        self.ticking = bool(self.ticking or (self.heartbeat and records))
        for record in records:
            if "pid" in record:
                self._head = record
                continue
            rows = [row for row in record.get("rows", ()) if len(row) == len(live_log.COLUMNS)]
            if rows:
                table = np.array(rows, dtype=np.float64).T
                self.steps.add(dict(zip(live_log.COLUMNS, table)), firm=False)
            self.heartbeat = Heartbeat(
                host=str(self._head.get("host", "")),
                pid=int(self._head.get("pid", 0)),
                written=float(record["time"]),
                seen=time.monotonic(),
                step=int(record["step"]),
                end=int(record["end"]),
                flops={str(key): float(value) for key, value in record["flops"].items()},
            )
            self.pace = [*self.pace[-119:], (self.heartbeat.written, self.heartbeat.step)]
        return bool(records) or before != self.beating

    def _read_decisions(self) -> bool:
        """Read decisions that are new, or whose end was not recorded yet."""
        folder = self.folder / "branches"
        if not folder.is_dir():
            return False
        new = False
        open_ones = False
        for name in os.listdir(folder):
            if "end" in self.decisions.get(name, ()):
                continue
            try:
                decision = json.loads((folder / name / DECISION).read_text(encoding="utf-8"))
            except (FileNotFoundError, NotADirectoryError):
                open_ones = True
                continue
            except (ValueError, RecursionError) as error:
                self.notes[f"branches/{name}"] = describe_error(error)
                continue
            self.notes.pop(f"branches/{name}", None)
            if is_complete(decision) and self.decisions.get(name) != decision:
                self.decisions[name] = decision
                new = True
        new |= open_ones != self.deciding
        self.deciding = open_ones
        return new

    def _read_summary(self) -> bool:
        path = self.folder / "summary.json"
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            gone = self.summary is not None
            self.summary = None
            self._summary_time = -1
            return gone
        if changed == self._summary_time:
            return False
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("expected an object")
        self.summary = summary
        self._summary_time = changed
        return True


def is_begun(folder: Path) -> bool:
    """Tell if a folder is that of a run that has begun."""
    if not (folder / "config.yaml").is_file():
        return False
    return (folder / "telemetry").is_dir() or (folder / "validation.jsonl").is_file()


def _is_event(record: Mapping[str, Any]) -> bool:
    """Tell if a record is a whole event."""
    parts = (record.get("step"), record.get("kind"), record.get("detail") or {})
    return all(isinstance(part, kind) for part, kind in zip(parts, (int, str, dict)))


def _found(folder: Path) -> str:
    """Describe a folder that is not that of a run."""
    try:
        if not folder.exists():
            return "no such folder"
        if not folder.is_dir():
            return "a file"
        runs = sorted(child.name for child in folder.iterdir() if is_begun(child))
    except OSError as error:
        return f"that it can't be read ({error.strerror})"
    if runs:
        return f"the folders of several runs ({', '.join(runs)}), one of which can be given"
    return "none"


def _columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return the columns of the run's own steps; what is missing is NaN."""
    columns = {name: table[name].to_numpy() for name in table.column_names}
    main = columns.pop("purpose") == "main"
    return {name: np.asarray(column)[main].astype(np.float64) for name, column in columns.items()}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return describe_error(error).splitlines()[0][:200]
