"""The report of decoding thresholds: its verdict, its pictures, and a record that can't be read."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainenv.report import write_report
from trainenv.report.decoding import DECODING, read_decoding
from trainenv.report.decoding.decoding_page import decoding_page, verdict
from trainenv.report.decoding.pareto_picture import pareto_front, pareto_picture
from trainenv.report.decoding.threshold_picture import threshold_picture
from trainenv.types import UserError


def point(rule: str, speedup: float, distance: float, k: int = 4) -> dict[str, Any]:
    return {
        "rule": rule,
        "fallback_threshold": 0.4,
        "rollback_threshold": 3.0,
        "k": k,
        "speedup": speedup,
        "acceptance": 0.7,
        "distance": distance,
    }


def measured(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def method(name: str, speedup: float, regret: float) -> dict[str, Any]:
    return {
        "method": name,
        "speedup": measured(speedup),
        "regret": measured(regret),
        "acceptance": measured(0.7),
        "distance": measured(0.0),
        "evaluations": measured(64),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    task = {"pair": "<big>", "corpus": "prose", "clock": "measured", "name": "<big> on prose"}
    row = {
        **task,
        "label": "ucb",
        "settings": {"fallback_threshold": 0.4, "k": 4},
        "speedup": 1.9,
        "acceptance": 0.7,
        "distance": 0.0,
        "regret": 0.02,
        "evaluations": 64,
    }
    record = {
        "finished": True,
        "plan": {"rule": "exact", "budget": 64},
        "tasks": [{**task, "points": [point("exact", 1.9, 0.0), point("lossy", 2.5, 0.1)]}],
        "methods": [
            method("oracle", 2.0, 0.0),
            method("heuristic", 1.5, 0.25),
            method("ucb", 1.9, 0.02),
            method("general, other pairs", 1.85, 0.04),
        ],
        "rows": [row],
    }
    (tmp_path / DECODING).write_text(json.dumps(record), encoding="utf-8")
    return tmp_path


def test_the_verdict_names_the_best_method_and_the_general_policy(folder: Path) -> None:
    text = verdict(read_decoding(folder))
    assert text.startswith("Ucb is 1.90 × as fast as the target alone, 2 % behind the oracle.")
    assert "General, other pairs, reaches 1.85 × without an evaluation" in text


def test_the_verdict_of_a_search_is_its_result(folder: Path) -> None:
    values = json.loads((folder / DECODING).read_text(encoding="utf-8"))
    found = {**values, "methods": [], "rows": [], "summary": "k 4: 1.50 × as fast"}
    (folder / DECODING).write_text(json.dumps(found), encoding="utf-8")
    assert verdict(read_decoding(folder)) == "K 4: 1.50 × as fast."


def test_the_verdict_says_that_no_method_is_faster_than_the_target(folder: Path) -> None:
    values = json.loads((folder / DECODING).read_text(encoding="utf-8"))
    slow = {**values["methods"][1], "speedup": {"value": 0.9, "low": 0.8, "high": 1.0}}
    found = {**values, "methods": [values["methods"][0], slow]}
    (folder / DECODING).write_text(json.dumps(found), encoding="utf-8")
    assert verdict(read_decoding(folder)).startswith("No method is faster than the target alone")


def test_the_page_is_one_sound_document_and_names_are_escaped(folder: Path) -> None:
    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.opened: list[str] = []

        def handle_starttag(self, tag: str, attributes: Any) -> None:
            if tag not in ("meta", "br"):
                self.opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.opened.pop() == tag

    path = write_report(folder)
    page = path.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert not parser.opened
    assert "<big>" not in page
    assert "&lt;big&gt; on prose" in page
    assert "fall-back 0.40, 4 tokens" in page
    assert "nats per token" not in page
    assert "https://" not in page


def test_the_front_is_what_no_other_setting_beats() -> None:
    rng = np.random.default_rng(0)
    points = [point("lossy", float(s), float(d)) for s, d in rng.random((200, 2))]
    front = pareto_front(points)
    for one in points:
        better = [
            other
            for other in points
            if other["speedup"] >= one["speedup"]
            and other["distance"] <= one["distance"]
            and (other["speedup"], other["distance"]) != (one["speedup"], one["distance"])
        ]
        assert (one in front) == (not better)


def test_pictures_have_a_mark_for_each_setting() -> None:
    points = [point("exact", 1 + 0.1 * k, 0.0, k) for k in range(1, 5)]
    picture = threshold_picture(points)
    assert picture.count('class="heat"') == 4
    assert picture.count("heat-best") == 1
    assert "1.40 × as fast" in picture
    assert threshold_picture([point("lossy", 2.0, 0.1)]) == ""
    slower = threshold_picture([point("exact", 0.5, 0.0)])
    assert "heat slower" in slower
    assert pareto_picture([*points, point("lossy", 3.0, 0.05)]).count("<circle") == 2


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / DECODING).write_text('{"plan": {}}', encoding="utf-8")
    with pytest.raises(UserError, match="run trainenv decode evaluate again"):
        decoding_page(read_decoding(tmp_path))
