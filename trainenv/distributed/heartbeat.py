"""Heartbeats between the processes of a run, so that none waits for one that no longer works.

A process that is killed closes its connections, which most others notice at once. One that is
stopped, or cut off, or that failed in the middle of a step does not: the others would wait for it
in a reduction. Each process therefore counts up in a store that process 0 hosts, and ends with a
sentence if another one has not counted for `PATIENCE` seconds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

PATIENCE = 20.0
"""Seconds without a beat after which a process counts as lost."""
_BEAT = 1.0  # seconds between beats
_EXIT = 2
_LEFT = "left"


class Heartbeat:
    """Thread that beats for this process and watches the others.

    Args:
        rank: Number of this process.
        size: Number of processes.
        share: Function that returns the object of process 0 in every process.
        end: Function that ends this process with a sentence; tests replace it.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        share: Callable[[Any], Any],
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._rank = rank
        self._size = size
        self._end = end or _end_process
        self._failure = ""
        self._stopped = threading.Event()
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        wait = timedelta(seconds=PATIENCE)
        hosted = None
        if rank == 0:
            hosted = TCPStore(host, 0, is_master=True, timeout=wait, wait_for_workers=False)
        port = share(None if hosted is None else hosted.port)
        self._store = hosted or TCPStore(host, port, is_master=False, timeout=wait)
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    def fail(self, reason: str) -> None:
        """Tell the others that this process has failed where they may not; empty if all have."""
        self._failure = reason

    def stop(self) -> None:
        """Stop beating and watching, at the end of the run."""
        self._stopped.set()
        self._thread.join(PATIENCE)

    def _work(self) -> None:
        seen: dict[int, tuple[str, float]] = {}  # by process: the last beat, and when it came
        failing: dict[int, float] = {}  # by process: since when it has failed
        count = 0
        while not self._stopped.wait(_BEAT):
            count += 1
            now = time.monotonic()
            try:
                self._store.set(str(self._rank), json.dumps([count, self._failure]))
                lost = self._lost(seen, failing, now)
            except RuntimeError:  # process 0 hosts the store
                if not self._stopped.wait(_BEAT):
                    self._end("process 0 has ended or does not answer")
                return
            if lost:
                self._end(lost)
                return
        try:
            self._store.set(str(self._rank), _LEFT)
        except RuntimeError:  # process 0 has left first
            return

    def _lost(
        self, seen: dict[int, tuple[str, float]], failing: dict[int, float], now: float
    ) -> str:
        """Return what is wrong with another process; empty if nothing is."""
        others = [0] if self._rank else range(1, self._size)
        for rank in others:
            beat = ""
            if self._store.check([str(rank)]):
                beat = self._store.get(str(rank)).decode()
            before, since = seen.get(rank, ("", now))
            if beat != before or rank not in seen:
                seen[rank] = (beat, now)
                since = now
            if beat == _LEFT:
                continue
            if now - since > PATIENCE:
                return f"process {rank} has not answered for {PATIENCE:.0f} seconds"
            failure = json.loads(beat)[1] if beat else ""
            if not failure:
                failing.pop(rank, None)
            elif now - failing.setdefault(rank, now) > PATIENCE / 2:
                return f"process {rank} has failed ({failure})"
        return ""


def _end_process(reason: str) -> None:
    """End this process at once: its main thread may wait in a reduction for ever."""
    print(
        f"trainenv: expected all processes of the run, found that {reason}; resume from the newest "
        "checkpoint with the same number of processes and --resume",
        file=sys.stderr,
        flush=True,
    )
    os._exit(_EXIT)
