"""The report of a comparison: its tables say what was found in the cells, as far as it went."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from test_report import NASTY, parsed

from tests.support.made_folders import METHODS, SCENARIOS, make_comparison
from trainenv.compare.results import results
from trainenv.report import write_report
from trainenv.report.comparison.comparison_page import verdict
from trainenv.report.comparison.comparison_record import read_comparison
from trainenv.report.comparison.forest_plot import best_first, clear, pairs
from trainenv.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("made") / "compared", seeds=3)


def test_the_page_shows_what_was_found(folder: Path) -> None:
    page = parsed(write_report(folder))
    said = " ".join(page.text)
    for part in (
        "Goals",
        "Methods",
        "Stressed scenarios",
        "Calm scenarios",
        "By scenario",
        "Decisions",
        "Failures",
        "out of memory",
    ):
        assert part in said
    comparison = read_comparison(folder)
    missed = sum(goal["met"] is False for goal in comparison.found["goals"])
    assert missed > 0  # the made ones are such that a quarter is none
    assert (
        sum((attributes.get("class") or "") == "badge missed" for _, attributes in page.tags)
        == missed
    )
    plots = [
        attributes
        for tag, attributes in page.tags
        if tag == "td" and attributes.get("class") == "plot"
    ]
    assert len(plots) == 3 * len(METHODS)  # all, stressed, calm


def test_what_is_found_is_what_the_comparison_finds(folder: Path) -> None:
    comparison = read_comparison(folder)
    rows = [json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*/*/*.json"))]
    again = results(comparison.suite, rows)
    assert json.dumps(comparison.found["methods"]) == json.dumps(again["methods"])
    points = pairs(comparison, ["spike"], "zclip")
    by = {(r["scenario"], r["seed"], r["method"]): r["log_final_loss"] for r in rows}
    expected = [by["spike", seed, "zclip"] - by["spike", seed, "nothing"] for seed in range(3)]
    assert points == pytest.approx(expected)


def test_rows_come_best_first_and_hindsight_last(folder: Path) -> None:
    rows = best_first(read_comparison(folder).rows("all"))
    assert rows[0]["method"] == "nothing"
    assert [row["hindsight"] for row in rows] == sorted(row["hindsight"] for row in rows)
    changes = [row["against_nothing"]["value"] for row in rows[1:] if not row["hindsight"]]
    assert changes == sorted(changes)


def test_an_interval_is_clear_of_zero_or_not() -> None:
    assert clear({"low": -2.0, "high": -1.0}) == -1
    assert clear({"low": 1.0, "high": 2.0}) == 1
    assert clear({"low": -1.0, "high": 1.0}) == clear({"low": math.nan, "high": math.nan}) == 0


def test_torn_cells_are_passed_over_and_the_rest_is_reported(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "x", seeds=2)
    whole = read_comparison(folder).found["cells"]["there"]
    for scenario in list(SCENARIOS)[2:]:
        for path in (folder / "cells" / scenario).glob("*/*.json"):
            path.unlink()
    victim = folder / "cells" / "calm" / "0" / "zclip.json"
    victim.write_bytes(victim.read_bytes()[:50])
    (folder / "cells" / "calm" / "one").mkdir()
    (folder / "cells" / "calm" / "one" / "zclip.json").write_text("{}")
    comparison = read_comparison(folder)
    assert comparison.found["cells"]["there"] == 2 * 2 * len(METHODS) - 1 < whole
    assert comparison.scenarios == list(SCENARIOS)[:2]
    assert "still to run" in " ".join(parsed(write_report(folder)).text)


def test_nothing_to_report_yet(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "x", seeds=1)
    for path in (folder / "cells").glob("*/*/*.json"):
        path.unlink()
    with pytest.raises(UserError, match="no cell that ended yet"):
        write_report(folder)


def test_what_was_asked_can_not_be_read(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "x", seeds=1)
    (folder / "suite.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"suite\.json"):
        write_report(folder)


def test_without_doing_nothing_there_is_no_verdict_but_a_page(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "x", seeds=1)
    for path in (folder / "cells").glob("*/*/nothing.json"):
        path.unlink()
    assert "yet" in verdict(read_comparison(folder))
    assert parsed(write_report(folder))


def test_text_from_cells_is_harmless(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "x", seeds=1)
    path = folder / "cells" / "calm" / "0" / "pbt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ended": "failed", "error": NASTY}))
    suite = json.loads((folder / "suite.json").read_text())
    suite["scenarios"][2]["fault"] = suite["name"] = NASTY
    (folder / "suite.json").write_text(json.dumps(suite))
    page = parsed(write_report(folder))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not re.search(r"<img", (folder / "report.html").read_text())
    assert NASTY in "".join(page.text)
