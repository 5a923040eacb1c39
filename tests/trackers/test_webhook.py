"""Alerts: each incident once, small, tried again, and never in the way of the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked_runs import record
from trainenv.config.schema import RunConfig
from trainenv.trackers import LiveTracker, RunStart
from trainenv.trackers.webhook import LARGEST, Webhook, message
from trainenv.types import UserError


class Server(HTTPServer):
    """Server that refuses the first `refusals` texts and keeps the others."""

    def __init__(self, refusals: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refusals = refusals
        self.texts: list[dict[str, Any]] = []
        self.tries = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tries += 1
        refused = self.server.tries <= self.server.refusals
        if not refused:
            self.server.texts.append(json.loads(body))
        self.send_response(503 if refused else 204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def started(address: str) -> Webhook:
    hook = Webhook(address, waits=(0, 0, 0))
    hook.start(RunStart(name="run", folder=Path("runs/run"), config={}, step=0, remembered={}))
    return hook


def test_incidents_of_a_run_are_posted_once(tmp_path: Path, server: Server) -> None:
    folder = record(tmp_path / "run", [LiveTracker("alerts", Webhook(server.address))])
    assert [text["kind"] for text in server.texts] == ["fired", "rewind"]
    assert server.texts[1]["text"] == "tiny, step 48: rolled back to step 40"
    assert server.texts[0]["folder"] == str(folder)


def test_alarms_close_together_are_one_incident(server: Server) -> None:
    hook = started(server.address)
    for step in (10, 11, 12, 150, 900):
        hook.event({"kind": "fired", "step": step, "detail": {}})
    hook.event({"kind": "decision", "step": 901})
    assert [text["step"] for text in server.texts] == [10, 900]


def test_a_refusal_is_tried_again_and_then_given_up(server: Server) -> None:
    hook = started(server.address)
    server.refusals = 2
    hook.event({"kind": "diverged", "step": 5})
    assert [text["kind"] for text in server.texts] == ["diverged"]
    server.refusals = 100
    hook.event({"kind": "diverged", "step": 6})
    assert server.tries == 6


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    record(tmp_path / "run", [LiveTracker("alerts", Webhook("http://127.0.0.1:9/", waits=(0,)))])


def test_texts_are_small_and_bounded(server: Server) -> None:
    long = "é" * 5000
    assert len(message({"run": long, "folder": long, "kind": "fired", "step": 1}, long)) <= LARGEST
    hook = started(server.address)
    for step in range(150):
        hook.event({"kind": "rewind", "step": step, "detail": {"to": 0}})
    assert len(server.texts) == 100


def test_only_web_addresses() -> None:
    with pytest.raises(UserError, match="alerts"):
        RunConfig.load("tiny", {"alerts.webhook": "file:///etc/passwd"})
