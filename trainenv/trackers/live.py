"""Feeding of trackers from the training loop: a queue and a thread for each.

The thread that trains only puts references into the queue. A tracker that is too slow loses steps,
never events; one that fails is reported once and left out.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from trainenv.records.decision_files import NAME as DECISION
from trainenv.tools.atomic_files import write_json
from trainenv.tools.json_lines import plain
from trainenv.trackers.contract import RunStart, Step, Tracker, values_of
from trainenv.types import Run, Telemetry

if TYPE_CHECKING:
    from trainenv.records.run_folder import RunFolder

NAME = "trackers.json"
_MOST = 100_000  # most steps in the queue; more are dropped
_PATIENCE = 60.0  # seconds that the end of a run waits for its trackers

Item = tuple[str, Any]


class LiveTracker:
    """Observer that feeds a tracker from a thread.

    Args:
        name: Name of the tracker in sentences.
        tracker: Tracker.
        patience: Seconds that the end of a run waits for it.
    """

    def __init__(self, name: str, tracker: Tracker, *, patience: float = _PATIENCE) -> None:
        self._name = name
        self._tracker = tracker
        self._patience = patience
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._waiting = 0  # steps in the queue, about
        self._dropped = 0
        self._flops = 0.0
        self._error: Exception | None = None
        self._run: Run | None = None
        self._thread = threading.Thread(target=self._serve, name=f"trainenv-{name}", daemon=True)
        self._folder = Path()

    def __str__(self) -> str:
        return f"the tracker {self._name}"

    def start(self, run: Run, folder: RunFolder) -> None:
        """Start the thread."""
        self._run = run
        self._folder = folder.path
        self._flops = run.ledger.total
        config = plain(run.config.model_dump(mode="json"))
        config.pop("alerts", None)  # its address is a secret
        remembered = _remembered(folder.path).get(self._name, {})
        about = RunStart(
            name=run.config.name,
            folder=folder.path,
            config=config,
            step=run.step,
            remembered=remembered,
        )
        self._queue.put(("start", about))
        self._thread.start()

    def steps(self, window: Sequence[Telemetry], line: int) -> None:
        """Put trained steps into the queue; drop them if it is full."""
        self._check()
        assert self._run is not None
        if self._waiting > _MOST:
            self._dropped += len(window)
            return
        self._waiting += len(window)
        before = self._flops
        self._flops = self._run.ledger.total
        self._queue.put(("steps", (window, line, before, self._flops)))

    def event(self, record: Mapping[str, Any]) -> None:
        """Put an event into the queue."""
        self._check()
        self._queue.put(("event", record))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Wait until the tracker has everything, at most for a minute."""
        self._queue.put(("finish", summary))
        self._thread.join(self._patience)
        self._check()
        if self._thread.is_alive():
            raise TimeoutError(f"it was not done {self._patience:.0f} s after the run")
        if self._dropped:
            raise BufferError(f"it was too slow and has {self._dropped} steps less")

    def _check(self) -> None:
        """Raise the error of the thread, if there was one."""
        if self._error is not None:
            error = self._error
            self._error = None
            raise error

    def _serve(self) -> None:
        """Pass on what comes, until the end or an error."""
        kind = ""
        while kind != "finish":
            kind, value = self._queue.get()
            try:
                self._pass_on(kind, value)
            except Exception as error:
                self._error = error
                return

    def _pass_on(self, kind: str, value: Any) -> None:
        match kind:
            case "start":
                memory = self._tracker.start(value)
                if memory and dict(memory) != value.remembered:
                    _remember(self._folder, self._name, memory)
            case "steps":
                window, line, before, now = value
                self._waiting -= len(window)
                self._tracker.steps(_steps(window, line, before, now))
            case "event":
                self._tracker.event(_with_decision(value, self._folder))
            case "finish":
                with tempfile.TemporaryDirectory() as folder:
                    report = None
                    if value is not None:
                        report = _report(self._folder, Path(folder))
                    self._tracker.finish(value, report)


def _steps(window: Sequence[Telemetry], line: int, before: float, now: float) -> list[Step]:
    """Return the steps of a block. Their compute is spread evenly over them."""
    each = (now - before) / max(len(window), 1)
    return [
        Step(
            step=telemetry.step,
            line=line,
            flops=before + (place + 1) * each,
            values=values_of(telemetry),
        )
        for place, telemetry in enumerate(window)
    ]


def _with_decision(record: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return an event; that of a decision with the whole record of the decision."""
    where = (record.get("detail") or {}).get("folder")
    if record["kind"] != "decision" or not where:
        return record
    with suppress(OSError, ValueError):
        text = (folder / where / DECISION).read_text(encoding="utf-8")
        return {**record, "decision": json.loads(text)}
    return record


def _report(folder: Path, out: Path) -> Path:
    from trainenv.report import write_report

    return write_report(folder, out / "report.html")


def _remembered(folder: Path) -> dict[str, dict[str, str]]:
    """Return what trackers have stored for the run in a folder, by tracker."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return {str(name): dict(values) for name, values in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


_FILE = threading.Lock()  # of `trackers.json`, which all trackers of a run share


def _remember(folder: Path, name: str, memory: Mapping[str, str]) -> None:
    with _FILE:
        write_json(folder / NAME, _remembered(folder) | {name: dict(memory)})
