"""The report of a run: one file that loads nothing, small, harmless, and right in what it says; read from any folder of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.made_folders import decision, make_run, rows_of, write_decision, write_rows
from trainenv.records.decision_files import read_decisions
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry
from trainenv.report import write_report
from trainenv.report.run.event_words import describe_event
from trainenv.report.run.run_page import CARDS
from trainenv.report.run.run_record import read_run
from trainenv.report.run.run_summary import Facts
from trainenv.types import UserError

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Nesting(HTMLParser):
    """Every element is closed in the order in which it was opened; what there is of tags and attributes is kept."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"circle", "line", "path", "rect"}, f"<{tag}/> stays open in HTML"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(path: Path) -> Nesting:
    parser = Nesting()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


def test_one_file_that_loads_nothing(run: Path) -> None:
    path = write_report(run)
    page = parsed(path)
    assert path == run / "report.html"
    assert not {tag for tag, _ in page.tags} & {
        "link",
        "iframe",
        "img",
        "object",
        "embed",
        "base",
        "form",
    }
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    text = path.read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {
        "http://www.w3.org/2000/svg"
    }  # a name, not an address


def test_what_a_run_shows(run: Path) -> None:
    page = parsed(write_report(run))
    said = " ".join(page.text)
    for part in (
        "The run",
        "Branch tree",
        "Decisions",
        "Calibration",
        "Uncertainty index and its parts",
        "Compute",
        "Events",
    ):
        assert part in said
    classes = " ".join(attributes.get("class") or "" for _, attributes in page.tags).split()
    assert classes.count("alarm") >= 3  # one a width of screen
    assert classes.count("card") == len(read_decisions(run))
    assert sum(tag == "tr" and "control" in (a.get("class") or "") for tag, a in page.tags) == len(
        read_decisions(run)
    )
    assert "rolled back from step 532 to 500" in said
    assert "grid" in said
    assert "LR ×0.8, ZClip" in said


def test_numbers_in_it_can_all_be_drawn(run: Path) -> None:
    """No NaN or infinity in any coordinate; what JSON holds can be read."""
    text = write_report(run).read_text(encoding="utf-8")
    for name, value in re.findall(r' (d|x|y|x1|x2|y1|y2|cx|cy|width|height)="([^"]*)"', text):
        assert "nan" not in value.lower(), (name, value)
        assert "inf" not in value.lower(), (name, value)
    held = re.search(r'<script type="application/json" id="steps">(.*?)</script>', text)
    assert held is not None
    data = json.loads(held[1])
    assert len({len(column) for column in data.values()}) == 1
    assert data["step"][-1] <= 1200


def test_a_long_run_with_many_decisions_stays_small(tmp_path: Path) -> None:
    steps = 100_000
    folder = make_run(tmp_path / "run", steps=steps)
    rng = np.random.default_rng(1)
    for number in range(100, 220):
        write_decision(
            folder,
            decision(
                number, 200 * number, 200 * number, rng, accepted=2 if number % 10 == 0 else None
            ),
        )
    path = write_report(folder, tmp_path / "deep" / "long.html")
    assert path.stat().st_size < 5e6
    text = path.read_text(encoding="utf-8")
    assert text.count('class="card"') == CARDS < len(read_decisions(folder))
    assert "more decisions, in short" in text


NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&]]>"


def test_text_from_files_is_harmless(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run")
    config = (made / "config.yaml").read_text(encoding="utf-8")
    (made / "config.yaml").write_text(
        re.sub(r"^name:.*$", f"name: {json.dumps(NASTY)}", config, flags=re.M), encoding="utf-8"
    )
    rng = np.random.default_rng(2)
    evil = _everywhere(decision(50, 300, 300, rng), NASTY)
    write_decision(made, {**evil, "number": 50, "step": 300})
    with (made / "events.jsonl").open("a") as file:
        for kind in ("skipped", "gave_up", NASTY):
            file.write(
                json.dumps({"line": 0, "step": 5, "kind": kind, "detail": {"reason": NASTY}}) + "\n"
            )
    summary = json.loads((made / "summary.json").read_text())
    (made / "summary.json").write_text(
        json.dumps({**summary, "ended": NASTY, "flops": {"main": 1.0, NASTY: 2.0}})
    )
    page = parsed(write_report(made))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2  # the data, and the pointer
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert NASTY in "".join(page.text)  # shown as it is


def _everywhere(value: Any, text: str) -> Any:
    """The same structure with every string replaced."""
    if isinstance(value, dict):
        return {key: _everywhere(part, text) for key, part in value.items()}
    if isinstance(value, list):
        return [_everywhere(part, text) for part in value]
    return text if isinstance(value, str) else value


def _broken(folder: Path) -> Iterator[str]:
    """Ways a kill may leave a folder."""
    yield "as it is"
    (folder / "summary.json").unlink()
    yield "no summary"
    (folder / "summary.json").write_text('{"ended": "bud')
    yield "torn summary"
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"line": 0, "st')
    with (folder / "validation.jsonl").open("a") as file:
        file.write("7\nnull\n[1]\n")
    yield "torn and foreign lines"
    victim = next((folder / "branches").iterdir()) / "decision.json"
    victim.write_bytes(victim.read_bytes()[:100])
    (folder / "branches" / "17").mkdir()
    (folder / "branches" / "17" / "decision.json").write_text('["no decision"]')
    (folder / "branches" / "18").mkdir()
    yield "torn decisions"
    part = folder / "telemetry" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-200])
    yield "torn part"
    for part in (folder / "telemetry").iterdir():
        part.unlink()
    yield "no telemetry"
    (folder / "events.jsonl").unlink()
    (folder / "lines.jsonl").unlink()
    yield "validation alone"


def test_whatever_was_torn_is_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=480)
    for state in _broken(folder):
        page = parsed(write_report(folder))
        assert "The run" in page.text, state
    facts = Facts.of(read_run(folder))
    assert facts.steps == 480
    assert facts.ended == "still running, or killed"
    assert facts.total_flops is None


def test_a_run_of_no_step_yet(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ended=None)
    for part in (folder / "telemetry").iterdir():
        part.unlink()
    (folder / "validation.jsonl").write_text("")
    assert "No validation loss is known" in " ".join(parsed(write_report(folder)).text)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_folders_that_are_none_of_ours(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(UserError, match="expected the folder of a run or of a comparison"):
        write_report(tmp_path / "x")
    assert not (tmp_path / "x" / "report.html").exists()


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    for name in ("left-alone", "by-hand"):
        make_run(tmp_path / name, steps=120)
    with pytest.raises(UserError, match=r"several runs \(by-hand, left-alone\)"):
        write_report(tmp_path)


def test_kept_steps_are_those_that_telemetry_says_are_kept(run: Path) -> None:
    kept = read_telemetry(run, kept_only=True)
    record = read_run(run)
    pd.testing.assert_series_equal(
        record.kept["step"].reset_index(drop=True), kept["step"], check_dtype=False
    )
    pd.testing.assert_series_equal(record.kept["loss"].reset_index(drop=True), kept["loss"])
    assert len(record.steps) == len(read_telemetry(run))


def test_of_a_step_that_was_recorded_twice_the_later_one_counts(tmp_path: Path) -> None:
    """Killed after it had recorded more than it had saved, and gone on with on a new line from the same step."""
    folder = make_run(tmp_path / "run", steps=240, ended=None)
    rng = np.random.default_rng(3)
    again = RunFolder(folder, line=1)
    again.rewound(200)
    write_rows(folder, rows_of(200, 240, 240, rng, line=2))
    record = read_run(folder)
    steps = record.kept["step"].tolist()
    assert steps == sorted(set(steps)) == list(range(1, 241))
    assert set(record.kept["line"][record.kept["step"] > 200]) == {2}


def test_facts_of_a_run(run: Path) -> None:
    facts = Facts.of(read_run(run))
    assert (facts.steps, facts.budget, facts.alarms, facts.rewinds) == (1200, 1200, 1, 1)
    accepted = sum(made["accepted"] is not None for made in read_decisions(run))
    assert (facts.verified, facts.accepted) == (len(read_decisions(run)), accepted)
    total = 4.9e11 + 6.5e9 + 3.1e10 + 1.2e8 + 3.3e10
    assert facts.total_flops == pytest.approx(total)
    assert facts.wasted == pytest.approx((6.5e9 + 3.1e10) / total)
    assert facts.drafting == pytest.approx(1.2e8 / total)
    assert f"A branch was accepted in {accepted} of" in facts.verdict


def test_a_diverged_run_has_no_final_loss(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ended="diverged")
    facts = Facts.of(read_run(folder))
    assert facts.loss is None
    assert "the run diverged" in facts.verdict


def test_decisions_come_in_the_order_of_their_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number, step in ((3, 100), (1, 900), (2, 100)):
        write_decision(tmp_path, decision(number, step, step, rng))
    assert [(made["number"], made["step"]) for made in read_decisions(tmp_path)] == [
        (1, 900),
        (2, 100),
        (3, 100),
    ]
    assert read_decisions(tmp_path / "nowhere") == []


def test_events_in_words() -> None:
    assert (
        describe_event({"kind": "rewind", "detail": {"to": 500, "lr_scale": 0.8}})
        == "rolled back to step 500, LR now ×0.8"
    )
    assert describe_event(
        {"kind": "intervention", "detail": {"clip": "zclip", "pending": True}}
    ) == ("intervention: ZClip (later part of an accepted plan)")
    assert describe_event(
        {"kind": "decision", "detail": {"number": 3, "accepted": False, "reason": "all worse"}}
    ) == ("decision 3: the run continued unchanged; all worse")
    assert describe_event({"kind": "diverged"}) == "diverged"


def test_a_run_that_went_on_on_its_control_accepted_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=480)
    for path in (folder / "branches").glob("*/decision.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"accepted": 0}))
    assert Facts.of(read_run(folder)).accepted == 0
    assert "continued unchanged" in " ".join(parsed(write_report(folder)).text)
