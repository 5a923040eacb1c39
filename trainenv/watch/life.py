"""State of a run as its folder shows it: running, finished, interrupted, killed."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import Literal

from trainenv.report.drawing import formatting
from trainenv.watch.run_reader import RunReader

STALE = 15.0  # seconds without a heartbeat after which a run counts as killed
_RECENT = 60.0  # seconds since the last write, for a folder without heartbeats

State = Literal["running", "finished", "diverged", "interrupted", "killed"]


@dataclass(frozen=True, kw_only=True)
class Life:
    """State of a run.

    Attributes:
        state: State in one word.
        words: State as a clause: "the budget is spent".
        seconds_left: Seconds to the end of the budget at the recent pace; None if unknown.
        ms_per_step: Milliseconds a step at the recent pace, branches included; None if unknown.
    """

    state: State
    words: str
    seconds_left: float | None = None
    ms_per_step: float | None = None


def life_of(reader: RunReader) -> Life:
    """Find out the state of a run."""
    if reader.summary is not None:
        if reader.summary.get("ended") == "diverged":
            return Life(state="diverged", words="the run diverged")
        return Life(state="finished", words="the budget is spent")
    kinds = [event["kind"] for event in reader.events[-1:]]
    if kinds == ["interrupted"] and not reader.beating:
        return Life(state="interrupted", words="interrupted, can be resumed")
    if reader.heartbeat is None or not reader.beating:
        return _without_heartbeat(reader)
    if not _is_alive(reader):
        since = _clock(reader.heartbeat.written)
        return Life(state="killed", words=f"killed, or cut off: no sign of life since {since}")
    left, pace = _pace(reader)
    words = "running"
    if reader.deciding:
        words = "running, a decision is being taken"
    return Life(state="running", words=words, seconds_left=left, ms_per_step=pace)


def _is_alive(reader: RunReader) -> bool:
    """Tell if the newest heartbeat is recent; the clocks of two machines are never compared twice.

    Once a heartbeat has arrived while we watch, only our own clock counts.
    """
    beat = reader.heartbeat
    assert beat is not None
    if beat.host == socket.gethostname() and not _exists(beat.pid):
        return False
    age = time.monotonic() - beat.seen
    if not reader.ticking:
        age = max(age, time.time() - beat.written)
    return age < STALE


def _exists(pid: int) -> bool:
    """Tell if a process of this machine exists."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _without_heartbeat(reader: RunReader) -> Life:
    """Judge a run that has just begun, or that a version without heartbeats has recorded."""
    names = ("config.yaml", "events.jsonl", "validation.jsonl", "telemetry")
    newest = 0.0
    for name in names:
        try:
            newest = max(newest, (reader.folder / name).stat().st_mtime)
        except OSError:
            continue
    if time.time() - newest < _RECENT:
        return Life(state="running", words="running, nothing was heard of it yet")
    return Life(state="killed", words=f"killed: nothing was written since {_clock(newest)}")


def _pace(reader: RunReader) -> tuple[float | None, float | None]:
    """Return the seconds left and the milliseconds a step at the recent pace; None if unknown."""
    if len(reader.pace) < 2 or reader.heartbeat is None:
        return None, None
    (start, first), (now, last) = reader.pace[0], reader.pace[-1]
    if last <= first or now <= start:
        return None, None
    seconds = (now - start) / (last - first)
    return seconds * max(reader.heartbeat.end - last, 0), 1000 * seconds


def _clock(when: float) -> str:
    """Write a time of this machine's clock; with the date if it is not of today."""
    then = time.localtime(when)
    if time.strftime("%F", then) == time.strftime("%F"):
        return time.strftime("%H:%M:%S", then)
    return time.strftime("%F %H:%M", then)


def left(life: Life) -> str:
    """Write the time left."""
    if life.seconds_left is None:
        return formatting.MISSING
    return formatting.duration(life.seconds_left)
