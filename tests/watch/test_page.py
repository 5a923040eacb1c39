"""The live page: harmless, small, alone on its machine, and right in a browser for runs of every kind."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.chromium import PATH, Page
from tests.support.made_folders import decision, make_run, rows_of, write_decision, write_rows
from tests.watch.test_reader import NOBODY, beat
from trainenv.config.schema import RunConfig
from trainenv.records.run_folder import RunFolder
from trainenv.types import Event
from trainenv.watch import RunReader

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
in_browser = pytest.mark.skipif(PATH is None, reason="needs the program chromium")


@contextmanager
def served(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve the page of a run from a thread; yield its address."""
    from trainenv.watch.server import make_app, open_socket

    reader = RunReader(folder)
    reader.poll()
    opened, address = open_socket(host, 0)
    config = uvicorn.Config(
        make_app(reader, address), log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield str(address)
    finally:
        server.should_exit = True
        thread.join()


def get(address: str, **headers: str) -> Any:
    """Ask an address; return status, headers and the beginning of the body."""
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read(1_000_000)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def first_events(address: str) -> dict[str, Any]:
    """The three parts of the state that the page gets first."""
    found = {}
    with urllib.request.urlopen(address, timeout=60) as answer:
        while len(found) < 3:
            name = answer.readline().decode().removeprefix("event: ").strip()
            found[name] = json.loads(answer.readline().decode().removeprefix("data: "))
            answer.readline()
    return found


def test_the_page_is_small_and_its_policy_is_strict(tmp_path: Path) -> None:
    with served(make_run(tmp_path / "run")) as address:
        weight = 0
        for name in ("", "style.css", "uplot.js", "charts.js", "live.js"):
            status, headers, body = get(address + name)
            assert status == 200
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            weight += len(body)
        weight += len(json.dumps(first_events(f"{address}events"), separators=(",", ":")))
        assert weight < 200_000
        assert get(f"{address}nothing.js")[0] == 404
        assert get(f"{address}range?from=x&to=2")[0] == 400
        stretch = json.loads(get(f"{address}range?from=100&to=110")[2])
        assert stretch["step"] == list(range(100, 111))


def test_another_name_for_the_loopback_is_refused(tmp_path: Path) -> None:
    with served(make_run(tmp_path / "run")) as address:
        assert get(address, Host="rebound.example")[0] == 400


def test_an_address_that_others_reach_needs_its_token(tmp_path: Path) -> None:
    with served(make_run(tmp_path / "run"), "0.0.0.0") as address:
        token = address.partition("?token=")[2]
        port = address.partition("?")[0].rstrip("/").rpartition(":")[2]
        here = f"http://127.0.0.1:{port}"
        assert len(token) >= 20
        for path in ("/", "/events", "/range?from=1&to=2"):
            assert get(here + path)[0] == 403
            assert get(f"{here}{path}{'&' if '?' in path else '?'}token=guess")[0] == 403
        assert get(f"{here}/?token={token}")[0] == 200
        assert first_events(f"{here}/events?token={token}")["facts"]["step"] == 1200


HOSTILE = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"


def hostile_run(path: Path) -> Path:
    """A run with scripts wherever a text of somebody else may be."""
    named = RunConfig.load("tiny", {"steps": 200, "name": HOSTILE.replace("/", "∕")})
    folder = RunFolder.create(path, named)
    write_rows(path, rows_of(0, 200, 200, np.random.default_rng(0)))
    made = decision(1, 100, 100, np.random.default_rng(0), why=HOSTILE)
    made |= {"reason": HOSTILE}
    made["branches"][2] |= {
        "reason": HOSTILE,
        "fate": HOSTILE,
        "interventions": [{HOSTILE: HOSTILE}],
    }
    write_decision(path, made)
    folder.event(Event(50, HOSTILE, {"reason": HOSTILE}))
    folder.event(Event(60, "fired", {"index": HOSTILE, "layer": HOSTILE, "layers": {HOSTILE: 1.0}}))
    (path / "summary.json").write_text(
        json.dumps({"ended": HOSTILE, "step": 200, "flops": {"main": 1e9, HOSTILE: 1e9}})
    )
    (path / "telemetry" / f"part-{'0' * 4}9.parquet").write_bytes(HOSTILE.encode())
    return path


@in_browser
def test_scripts_in_a_folder_never_run(tmp_path: Path) -> None:
    with served(hostile_run(tmp_path / "run")) as address, Page(tmp_path / "profile") as page:
        page.open(address)
        page.wait("document.documentElement.dataset.drawn && document.querySelector('#events li')")
        assert page.value("document.querySelectorAll('main img, main script').length") == 0
        assert HOSTILE in page.value("document.querySelector('#decisions').textContent")
        assert page.value("document.title").startswith("200 of 200 · <img")
        assert page.problems == []
        assert all(request.startswith((address, "data:")) for request in page.requests)


@contextmanager
def beating(path: Path, *, step: int) -> Iterator[None]:
    """Keep a run alive from a thread."""
    stop = threading.Event()

    def go() -> None:
        while not stop.wait(0.5):
            beat(path, step=step)

    thread = threading.Thread(target=go)
    thread.start()
    yield
    stop.set()
    thread.join()


@in_browser
def test_a_run_in_progress_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    folder = RunFolder.create(path, RunConfig.load("tiny", {"steps": 1000, "name": "live"}))
    folder.validation(0, 5.5)
    write_rows(path, rows_of(0, 100, 1000, np.random.default_rng(0)))
    with served(path) as address, Page(tmp_path / "profile", width=390) as page:
        with beating(path, step=100):
            page.open(address)
            page.wait("document.querySelector('main').dataset.state === 'running'")
            page.wait("document.documentElement.dataset.drawn")
            assert page.value("document.documentElement.scrollWidth") <= 390, "something is cut"
            assert page.value("document.querySelector('#tree-figure').hidden")
        write_decision(path, decision(1, 100, 100, np.random.default_rng(0)))
        beat(path, step=150, rows=[[0, s, 2.5, 1e-3, 0, 0, 0, 0, 3, False] for s in (120, 150)])
        page.wait("document.title.startsWith('150') && document.querySelector('#decisions li')")
        assert not page.value("document.querySelector('#tree-figure').hidden")
        page.value("Charts.zoom([110, 130])")
        page.wait("Charts.shown().step.join() === '120'")
        (path / "live.jsonl").unlink()
        beat(path, step=150, pid=NOBODY)
        page.wait("document.querySelector('main').dataset.state === 'killed'")
        verdict = page.value("document.querySelector('#verdict').textContent")
        assert "trainenv run --resume" in verdict
        assert page.problems == []


@in_browser
def test_a_million_steps_are_thinned(tmp_path: Path) -> None:
    path = tmp_path / "run"
    count = 1_000_000
    RunFolder.create(path, RunConfig.load("tiny", {"steps": count, "name": "long"}))
    few = rows_of(0, 1000, count, np.random.default_rng(0))
    many = pd.concat([few] * 50, ignore_index=True)
    for start in range(0, count, len(many)):
        write_rows(path, many.assign(step=np.arange(start + 1, start + len(many) + 1)))
    with served(path) as address, Page(tmp_path / "profile") as page:
        page.open(address)
        page.wait("document.documentElement.dataset.drawn")
        assert page.value("Charts.shown().step.length") == 400
        assert page.value("Charts.shown().step[399]") == count
        page.value("Charts.zoom([500000, 500100])")
        page.wait("Charts.shown().step.length === 101")
        assert page.problems == []


@in_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_finished_run(tmp_path: Path, dark: bool) -> None:
    with (
        served(make_run(tmp_path / "run")) as address,
        Page(tmp_path / "profile", dark=dark) as page,
    ):
        page.open(address)
        page.wait(
            "document.documentElement.dataset.drawn && document.querySelector('#decisions li')"
        )
        assert page.value("document.querySelectorAll('#decisions li').length") == 5
        assert page.value("document.querySelectorAll('.uplot').length") == 4
        assert page.value("document.querySelector('main').dataset.state") == "finished"
        assert page.problems == []
