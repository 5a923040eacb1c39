"""The verdict that a report begins with: what a person on call needs, from the folder alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.test_report import parsed
from tests.support.chromium import PATH, Page
from tests.support.made_folders import (
    decision,
    make_comparison,
    make_run,
    rows_of,
    summary,
    write_rows,
)
from trainenv.checkpoints import FOLDER
from trainenv.config.schema import RunConfig
from trainenv.records.processes import command, note_start, read_processes
from trainenv.records.run_folder import RunFolder
from trainenv.report import write_report
from trainenv.report.drawing.panels import Frame
from trainenv.report.run.glossary import WORDS
from trainenv.report.run.loss_panel import loss_panel
from trainenv.report.run.run_page import FEWEST
from trainenv.report.run.run_record import read_run
from trainenv.report.run.run_summary import Facts
from trainenv.report.run.timeline import Story
from trainenv.report.run.verdict import Verdict
from trainenv.report.run.verdict_words import verdict_words
from trainenv.run import TrainingRun
from trainenv.training.ledger import wasted_share
from trainenv.types import Event

in_browser = pytest.mark.skipif(PATH is None, reason="needs the program chromium")


def verdict_of(folder: Path) -> Verdict:
    record = read_run(folder)
    return Verdict.of(record, Story.of(record))


def answers_of(folder: Path) -> dict[str, str]:
    return dict(verdict_of(folder).answers)


def steered(folder: Path, flags: tuple[str, ...] = ("--branching",)) -> Path:
    """Note in a made folder how the run was steered; without flags it was left alone."""
    (folder / FOLDER).mkdir(exist_ok=True)
    callback = {"class": "trainenv.agents.Branching"} if flags else None
    made = {"config": {}, "corpus": None, "callback": callback, "flags": list(flags)}
    (folder / FOLDER / "made_of.json").write_text(json.dumps(made), encoding="utf-8")
    return folder


def spiked(folder: Path, *, recovers: bool = True, ended: str | None = "budget spent") -> Path:
    """A run that was left alone, with an alarm at step 401 that either passes or does not."""
    made = RunFolder.create(folder, RunConfig.load("tiny", {"steps": 800}))
    rng = np.random.default_rng(0)
    rows = rows_of(0, 800, 800, rng, spike_at=400)
    if not recovers:
        rows.loc[rows["step"] > 405, "loss"] = 4.0
    write_rows(folder, rows)
    made.event(Event(404, "fired", {"index": 4.1, "loss": 3.3}))
    made.validation(400, 2.2)
    made.validation(800, 2.06 if recovers else 4.0)
    if ended is not None:
        made.finish(summary(ended, 800))
    return folder


def test_a_run_with_an_undone_spike_is_fine_and_says_what_happened_when(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    verdict = verdict_of(folder)
    assert verdict.state == "fine"
    assert not verdict.todo
    answers = dict(verdict.answers)
    assert re.match(
        r"1 incident, it is over. Step 520: the loss rose from 2\.\d\d to 3\.\d\d; steps 501–532 "
        r"were undone, on the new way back at its earlier level at step 5\d\d\.",
        answers["What happened"],
    )
    assert answers["What was done"].startswith("1 rollback; 5 decisions by trial, 3 accepted")
    assert answers["To do"] == "Nothing."
    assert "6.7 % wasted" in answers["Cost"]
    assert "width 64" in answers["Model"]
    assert "seed 0" in answers["Configuration"]


def test_a_spike_that_nobody_answered_is_told_with_the_step_of_recovery(tmp_path: Path) -> None:
    folder = spiked(tmp_path / "run")
    verdict = verdict_of(folder)
    assert verdict.state == "fine"
    happened = dict(verdict.answers)["What happened"]
    back = re.search(r"back at its earlier level at step (\d+)", happened)
    assert back is not None
    assert 415 <= int(back[1]) <= 450
    [entry] = [one for one in Story.of(read_run(folder)).entries if one.kind == "incident"]
    assert entry.title.startswith("The loss rose from 2.")
    assert "first seen at step 404: alarm: uncertainty index 4.1" in entry.text.lower()
    assert "Done: nothing was changed." in entry.text


def test_a_run_that_ends_above_its_best_needs_a_look(tmp_path: Path) -> None:
    verdict = verdict_of(spiked(tmp_path / "run", recovers=False))
    assert verdict.state == "look"
    assert "82 % above the lowest one (2.200)" in verdict.todo[0]
    assert "not back at its earlier level yet" in dict(verdict.answers)["What happened"]


def test_a_diverged_run_says_where_to_continue_from(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ended="diverged")
    verdict = verdict_of(folder)
    assert (verdict.state, verdict.word) == ("bad", "Diverged")
    assert f"trainenv fork {folder}@1100 --set optimizer.lr=0.001" in verdict.todo[0]


def test_a_run_without_an_end_says_how_to_resume_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ended=None)
    verdict = verdict_of(folder)
    assert verdict.word == "Not finished"
    assert f"trainenv run --resume --out {folder}" in verdict.todo[0]


def test_faults_and_a_planner_that_was_given_up_are_to_do(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for line in (
        {"step": 100, "kind": "skipped", "detail": {"fault": True, "reason": "no room left"}},
        {"step": 200, "kind": "gave_up", "detail": {"reason": "alarms come back"}},
    ):
        with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"line": 0, **line}) + "\n")
    verdict = verdict_of(folder)
    assert verdict.state == "look"
    assert any("no room left" in one for one in verdict.todo)
    assert any("given up" in one for one in verdict.todo)


def test_foreign_values_in_the_records_are_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for line in (
        {"step": "x", "kind": "fired"},
        {"step": 7, "kind": ["fired"]},
        {"step": 900, "kind": "rewind", "detail": {"to": "x"}},
        {"step": 910, "kind": "intervention", "detail": {"plan": "x", "lr_scale": "x"}},
    ):
        with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"line": 1, **line}) + "\n")
    (folder / "processes.jsonl").write_text('{"kind": "start", "versions": 7}\n[1]\n{"kind"')
    assert verdict_of(folder).state == "fine"
    assert "Events" in parsed(write_report(folder)).text


def test_the_head_of_the_page_holds_every_answer(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    page = write_report(folder).read_text(encoding="utf-8")
    head = page[page.index("<header>") : page.index("</header>")]
    for question, answer in answers_of(folder).items():
        assert f"<dt>{question}</dt>" in head
        assert answer.split(",")[0].split("'")[0] in head
    assert page.index("</header>") < page.index("<svg") < page.index('class="timeline"')
    assert page.index('class="timeline"') < page.index('id="decisions"')
    said = " ".join(parsed(folder / "report.html").text)
    for word, meaning in WORDS:
        assert word in said
        assert meaning in said


# ── the run left alone ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `trainenv demo` leaves it: the same run steered and left alone."""
    root = tmp_path_factory.mktemp("pair") / "demo"
    root.mkdir()
    steered(make_run(root / "branching"))
    steered(make_run(root / "left-alone", seed=1), ())
    shutil.rmtree(root / "left-alone" / "branches")
    return root


def test_a_folder_of_both_runs_reports_the_steered_one_next_to_the_other(pair: Path) -> None:
    record = read_run(pair)
    assert record.path.name == "branching"
    assert record.left_alone is not None
    assert record.left_alone.path.name == "left-alone"
    page = parsed(write_report(pair))
    said = " ".join(page.text)
    assert "Against the run left alone" in said
    assert re.search(r"\d\.\d % (lower|higher) than the same run left alone", said)
    curves = [a for tag, a in page.tags if tag == "path" and a.get("class") == "alone"]
    assert len(curves) == 3  # one a width of screen
    assert read_run(pair / "branching").left_alone is not None
    assert read_run(pair / "left-alone").left_alone is None


def test_another_configuration_is_no_comparison(pair: Path, tmp_path: Path) -> None:
    steered(make_run(tmp_path / "mine"))
    steered(make_run(tmp_path / "other", steps=600), ())
    assert read_run(tmp_path / "mine").left_alone is None


# ── the chart ─────────────────────────────────────────────────────────────────────────────────────


def test_losses_above_the_axis_are_marked_with_their_value(tmp_path: Path) -> None:
    record = read_run(spiked(tmp_path / "run"))
    record.steps.loc[record.steps["step"] == 600, "loss"] = 41.25
    record.steps.loc[record.steps["step"] == 700, "loss"] = np.nan
    drawn = loss_panel(record, Frame.of(1080.0, record.furthest), 14, 300.0)
    assert "step 600: training loss 41.250, above the axis" in drawn
    assert ">41.25</text>" in drawn
    assert "step 700: the loss was not finite" in drawn
    highest = max(float(y) for y in re.findall(r"<text[^>]*>(\d\.\d+)</text>", drawn))
    assert highest < 10  # the axis does not follow the outlier


def test_calibration_is_shown_only_where_there_are_enough_branches(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert "Calibration" in parsed(write_report(folder)).text
    for path in sorted((folder / "branches").iterdir())[(FEWEST - 1) // 6 :]:
        shutil.rmtree(path)
    said = parsed(write_report(folder)).text
    assert "Decisions" in said
    assert "Calibration" not in said


# ── the words of a verdict ────────────────────────────────────────────────────────────────────────


def test_an_accepted_branch_is_explained_by_its_rule() -> None:
    made = decision(1, 100, 100, np.random.default_rng(0))
    chosen: dict[str, Any] = made["branches"][2]
    chosen |= {
        "interventions": [{"lr_scale": 1.1}],
        "delta": 0.0012,
        "expected": {"low": -0.002, "median": 0.001, "high": 0.004},
        "forecast": {"final": {"median": -0.004}},
    }
    made["verification"]["verify_steps"] = 6
    assert verdict_words(made) == (
        "accepted: LR ×1.1: +0.12 % after 6 steps, as a higher rate is at first and as forecast "
        "(−0.20 to +0.40 %); forecast for the end −0.40 %"
    )
    chosen |= {"delta": -0.02, "expected": None, "forecast": None, "interventions": [{}]}
    made["verification"] |= {"rule": "better", "settings": {"margin": 0.01}}
    assert verdict_words(made) == (
        "accepted: no intervention: −1.98 % after 6 steps, which is below the −1.00 % that is "
        "required"
    )


def test_a_decision_that_changed_nothing_names_the_best_branch_and_its_objection() -> None:
    made = decision(1, 100, 100, np.random.default_rng(0), accepted=None)
    for branch in made["branches"][1:]:
        branch |= {"delta": 0.01, "fate": "rejected"}
    made["branches"][3]["delta"] = -0.001
    words = verdict_words(made)
    assert words.startswith("unchanged: no branch held up against doing nothing; the best of 6 was")
    assert "LR ×0.9, weight decay ×2, −0.10 % after 25 steps: worse than doing nothing" in words


# ── the origin of a run ───────────────────────────────────────────────────────────────────────────


def test_command_versions_and_device_are_recorded_by_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run")
    assert answers_of(folder)["Command"] == "not recorded"
    run = TrainingRun.from_config("tiny", {"steps": 2, "validation.sequences": 4, "device": "cpu"})
    monkeypatch.setattr("sys.argv", ["/x/trainenv/__main__.py", "run", "tiny", "--out", "a b"])
    note_start(folder, run)
    note_start(folder, run)
    [first, _] = read_processes(folder)
    assert first["parameters"] == sum(one.numel() for one in run.model.parameters())
    answers = answers_of(folder)
    assert answers["Command"].startswith("trainenv run tiny --out 'a b' (began 20")
    assert "resumed once, last at step" in answers["Command"]
    assert "torch 2" in answers["Versions"]
    assert "on cpu" in answers["Versions"]
    assert "0.121 million parameters" in answers["Model"]


def test_a_recorded_command_has_no_secrets() -> None:
    typed = ["trainenv", "run", "tiny", "--set", "alerts.webhook=https://x/token", "--out", "a"]
    assert command(typed) == "trainenv run tiny --set 'alerts.webhook=…' --out a"
    assert "token" not in command(["trainenv", "--set=alerts.webhook=https://x/token"])
    assert command(["/a/train.py", "-x"]) == "python train.py -x"


def test_wasted_compute_is_one_formula(tmp_path: Path) -> None:
    facts = Facts.of(read_run(make_run(tmp_path / "run")))
    assert facts.wasted == wasted_share(facts.flops)


# ── on a phone ────────────────────────────────────────────────────────────────────────────────────

CUT = """[...document.querySelectorAll('main *')].filter(one => {
  if (one.closest('svg') || one.closest('.key')) return false;
  const box = one.getBoundingClientRect();
  return box.width && (box.right > 391 || (one.classList.contains('box')
    && one.scrollWidth > one.clientWidth + 1));
}).map(one => one.outerHTML.slice(0, 80))"""


@in_browser
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_at_390_pixels(tmp_path: Path, pair: Path, dark: bool) -> None:
    for name, folder in (("run", pair), ("comparison", make_comparison(tmp_path / "comparison"))):
        path = write_report(folder, tmp_path / f"{name}.html")
        with Page(tmp_path / f"profile-{name}", width=390, dark=dark) as page:
            page.open(path.as_uri())
            page.wait("document.querySelector('footer')")
            page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.value("document.documentElement.scrollWidth") == 390
            assert page.value(CUT) == []
            assert page.problems == []


@in_browser
def test_the_verdict_fits_on_the_first_screen(tmp_path: Path, pair: Path) -> None:
    path = write_report(pair, tmp_path / "run.html")
    with Page(tmp_path / "profile", width=1280) as page:
        page.open(path.as_uri())
        page.wait("document.querySelector('footer')")
        assert page.value("document.querySelector('.answers').getBoundingClientRect().bottom") < 800
