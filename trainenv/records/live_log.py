"""`live.jsonl`: the heartbeat of a run and its newest steps, for those who watch the folder.

Telemetry is written in large parts, often minutes apart. Between two parts this file has the steps
since, a line a second, thinned to a few dozen rows. It is emptied when a part is written and
deleted when the run ends, so it stays small and nothing that is recorded depends on it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.tools.atomic_files import write_file
from trainenv.tools.json_lines import plain
from trainenv.types import Run, Telemetry

if TYPE_CHECKING:
    from trainenv.records.run_folder import RunFolder

NAME = "live.jsonl"
COLUMNS = (
    "line",
    "step",
    "loss",
    "lr",
    "volatility",
    "entropy",
    "disagreement",
    "index",
    "threshold",
    "fired",
)
EVERY = 1.0  # seconds from one heartbeat to the next
_MOST = 48  # most rows in a line
_BLOCKS = 10_000  # most blocks that wait for the next heartbeat

Row = tuple[int, Telemetry]  # line of the lineage, and a step of it


class LiveLog:
    """Observer that writes `live.jsonl`, from a thread of its own.

    A run that takes less than a second writes nothing.

    Args:
        every: Seconds from one heartbeat to the next.
    """

    def __init__(self, every: float = EVERY) -> None:
        self._every = every
        self._blocks: deque[tuple[int, Sequence[Telemetry]]] = deque(maxlen=_BLOCKS)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._path = Path()

    def __str__(self) -> str:
        return f"the log {NAME}"

    def start(self, run: Run, folder: RunFolder) -> None:
        """Start the thread; a file that a killed process has left is deleted."""
        self._path = folder.path / NAME
        self._path.unlink(missing_ok=True)
        self._thread = threading.Thread(
            target=self._beat, args=(run, folder), name="trainenv-live-log", daemon=True
        )
        self._thread.start()

    def steps(self, window: Sequence[Telemetry], line: int) -> None:
        """Keep steps for the next heartbeat."""
        self._blocks.append((line, window))

    def event(self, record: Mapping[str, Any]) -> None:
        """Do nothing: events have a file of their own."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Stop the thread, and delete the file unless an error has ended the training."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if summary is not None:
            self._path.unlink(missing_ok=True)

    def _beat(self, run: Run, folder: RunFolder) -> None:
        """Write a line every so often. A disk that refuses it is tried again at the next one."""
        parts = -1
        while not self._stop.wait(self._every):
            rows = self._taken()
            text = json.dumps(_heartbeat(run, rows), separators=(",", ":")) + "\n"
            with suppress(OSError):
                # Read after the rows were taken: then those of a part that was written in between
                # are in both files, and none is missing.
                if folder.telemetry.parts != parts:
                    parts = folder.telemetry.parts
                    write_file(self._path, json.dumps(_head()) + "\n" + text)
                else:
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(text)

    def _taken(self) -> list[Row]:
        """Take the steps that wait."""
        rows = list[Row]()
        while self._blocks:
            line, window = self._blocks.popleft()
            rows += [(line, telemetry) for telemetry in window]
        return rows


def _head() -> dict[str, Any]:
    """Return the first line of the file: the process that writes it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "columns": COLUMNS}


def _heartbeat(run: Run, rows: Sequence[Row]) -> Any:
    """Return a line of the file.

    Attributes of the run are read while it trains; each of them is whole at any moment.
    """
    return plain(
        {
            "time": round(time.time(), 3),
            "step": run.step,
            "end": run.horizon.end,
            "flops": run.ledger.as_dict(),
            "rows": [_values(line, telemetry) for line, telemetry in thinned(rows)],
        }
    )


def _values(line: int, telemetry: Telemetry) -> list[Any]:
    reading = telemetry.reading
    return [
        line,
        telemetry.step,
        telemetry.loss,
        telemetry.lr,
        reading.volatility,
        reading.entropy,
        reading.disagreement,
        reading.index,
        reading.threshold,
        reading.fired,
    ]


def thinned(rows: Sequence[Row], most: int = _MOST) -> list[Row]:
    """Return about `most` rows: the lowest and the highest loss of equal stretches, and the last.

    A loss that is not finite counts as the highest.
    """
    if len(rows) <= most:
        return list(rows)
    length = -(-2 * len(rows) // most)
    places = {len(rows) - 1}
    for start in range(0, len(rows), length):
        losses = [row[1].loss for row in rows[start : start + length]]
        places.add(start + losses.index(min(losses, key=_height)))
        places.add(start + losses.index(max(losses, key=_height)))
    return [rows[place] for place in sorted(places)]


def _height(loss: float) -> float:
    if loss != loss:  # NaN, which compares with nothing
        return float("inf")
    return loss
