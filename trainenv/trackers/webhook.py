"""Alerts: a small JSON text to a web address at each incident of a run, once."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainenv.report.run.event_words import describe_event
from trainenv.tools.json_lines import plain
from trainenv.trackers.contract import RunStart, Step

LARGEST = 1024  # bytes of a text
INCIDENTS = ("fired", "non_finite", "diverged", "rewind", "gave_up")
_QUIET = 200  # steps within which further alarms belong to the same incident
_MOST = 100  # most texts of one process
_WAITS = (0.0, 1.0, 5.0)  # seconds before each try
_TIMEOUT = 5.0  # seconds of a try


class Webhook:
    """Tracker that posts incidents: alarms, non-finite losses, rollbacks, a run that diverged.

    Each is posted once, in at most three tries. One that can't be posted is dropped. After a
    hundred of them the run is silent.

    Args:
        address: Address that takes a JSON text by POST.
        waits: Seconds before each try.
    """

    def __init__(self, address: str, *, waits: Sequence[float] = _WAITS) -> None:
        self._address = address
        self._waits = tuple(waits)
        self._about: dict[str, Any] = {}
        self._last = dict[str, int]()
        self._posted = 0
        self._stop = threading.Event()

    def start(self, run: RunStart) -> Mapping[str, str]:
        """Keep the name and the folder of the run."""
        self._about = {"run": run.name, "folder": str(run.folder)}
        return {}

    def steps(self, steps: Sequence[Step]) -> None:
        """Do nothing: a step is no incident."""

    def event(self, record: Mapping[str, Any]) -> None:
        """Post an incident; further alarms soon after one belong to it."""
        kind = str(record["kind"])
        fault = kind == "skipped" and bool((record.get("detail") or {}).get("fault"))
        if kind not in INCIDENTS and not fault:
            return
        step = int(record["step"])
        if kind == "fired":
            last = self._last.get(kind)
            self._last[kind] = step
            if last is not None and abs(step - last) <= _QUIET:
                return
        self._post({**self._about, "kind": kind, "step": step, "time": round(time.time())}, record)

    def finish(self, summary: Mapping[str, Any] | None, report: Path | None) -> None:
        """Post that an error has ended the training, if one has."""
        if summary is None:
            about = {**self._about, "kind": "error", "time": round(time.time())}
            self._post(
                about, {"kind": "error", "detail": {"reason": "the training was broken off"}}
            )

    def _post(self, about: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        if self._posted >= _MOST:
            return
        self._posted += 1
        step = about.get("step")
        where = str(about.get("run"))
        if step is not None:
            where += f", step {step}"
        body = message(about, f"{where}: {describe_event(record)}")
        for wait in self._waits:
            time.sleep(wait)
            try:
                _send(self._address, body)
            except OSError:  # refused, unreachable, an error of the server
                continue
            return


def message(about: Mapping[str, Any], text: str) -> bytes:
    """Return the JSON text of an incident, at most `LARGEST` bytes; the words are cut to fit."""
    short = {name: value for name, value in about.items() if not isinstance(value, str)}
    short |= {name: value[:200] for name, value in about.items() if isinstance(value, str)}
    for length in (600, 400, 200, 80, 0):
        body = json.dumps(plain({"text": text[:length], **short}), ensure_ascii=False).encode()
        if len(body) <= LARGEST:
            return body
    return json.dumps({"text": "incident", "kind": about.get("kind")}).encode()


def _send(address: str, body: bytes) -> None:
    """Post a text.

    Raises:
        OSError: The address can't be reached or refuses it.
    """
    request = urllib.request.Request(
        address, data=body, headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT):
        pass
