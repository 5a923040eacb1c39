"""Results from rows: paired differences, ratios of sums, regret, decisions, goals, tables."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.support.compare_fakes import suite
from trainenv.cli.comparison_screen import Screen, counts, minutes
from trainenv.compare.results import groups_of, is_static, results
from trainenv.compare.suite import Suite
from trainenv.tools.json_lines import plain

Found = dict[str, Any]


def row(scenario: str, seed: int, method: str, loss: float, **more: Any) -> dict[str, Any]:
    values = {
        "scenario": scenario,
        "seed": seed,
        "method": method,
        "ended": "budget spent",
        "error": "",
        "steps": 40,
        "final_loss": math.exp(loss),
        "log_final_loss": loss,
        "instability": {"events": 2, "steps": 50, "per_100k": 4000.0},
        "recovery": {"mean": 10.0, "median": 9.0, "events": 2, "unrecovered": 0},
        "flops": {"main": 80.0, "rewound": 5.0, "verify": 10.0, "plan": 5.0},
        "total_flops": 100.0,
        "budget": 100.0,
        "wasted": 0.15,
        "drafting": 0.05,
        "decisions": None,
        "seconds": 1.0,
    }
    return {**values, **more}


def level(scenario: str, seed: int) -> float:
    """Difficulty of a run; it varies far more than methods differ."""
    return 1 + len(scenario) / 3 + 0.2 * seed


def made(of: Suite, effects: dict[str, float], **more: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of methods that differ by a constant, give or take a little, and by more that is said of each."""
    return [
        row(
            scenario.name,
            seed,
            method,
            level(scenario.name, seed) + effect + 0.001 * ((seed + len(scenario.name)) % 2),
            **more.get(method, {}),
        )
        if method != "nothing"
        else row(
            scenario.name, seed, method, level(scenario.name, seed) + effect, **more.get(method, {})
        )
        for scenario in of.scenarios
        for seed in range(of.seeds)
        for method, effect in effects.items()
    ]


def of_method(found: Found, method: str, group: str = "all", table: str = "methods") -> Found:
    (there,) = [row for row in found[table] if (row["group"], row["method"]) == (group, method)]
    return dict(there)


def goal(found: Found, words: str) -> Found:
    (there,) = [goal for goal in found["goals"] if words in goal["what"]]
    return dict(there)


FOUR = suite(
    seeds=3,
    methods=["nothing", "zclip", "pbt", "branching", "branching-quarter"],
    hindsight=["static-0.3"],
)
EFFECTS = {
    "nothing": 0.0,
    "zclip": -0.01,
    "pbt": 0.02,
    "branching": -0.05,
    "branching-quarter": 0.01,
    "static-0.3": -0.08,
}


@pytest.fixture(scope="module")
def found() -> Found:
    decisions = {
        "invoked": 3,
        "verified": 2,
        "accepted": 1,
        "gap": 0.02,
        "coverage": 0.75,
        "verify_steps": 30,
    }
    more = {
        "branching": {
            "decisions": decisions,
            "instability": {"events": 0, "steps": 50, "per_100k": 0.0},
            "wasted": 0.08,
            "drafting": 0.02,
        },
        "branching-quarter": {"total_flops": 25.0},
    }
    return results(FOUR, made(FOUR, EFFECTS, **more))


def test_differences_are_of_the_same_runs(found: Found) -> None:
    """Losses differ by 1 between runs; the difference of two methods is known to a thousandth."""
    against = of_method(found, "branching")["against_nothing"]
    assert against["value"] == pytest.approx(-0.0495, abs=6e-4)
    assert against["high"] - against["low"] < 0.0015
    assert (against["pairs"], against["scenarios"]) == (12, 4)
    other = of_method(found, "pbt")["branching_against"]
    assert other["value"] == pytest.approx(-0.07)
    assert of_method(found, "branching")["branching_against"]["pairs"] == 0
    assert math.isnan(of_method(found, "nothing")["against_nothing"]["value"])
    assert of_method(found, "branching", "LR × 10")["against_nothing"]["scenarios"] == 1


def test_groups_are_calm_stressed_and_each_fault() -> None:
    assert groups_of(FOUR) == {
        "all": ("calm", "calm-2", "high", "bursts"),
        "calm": ("calm", "calm-2"),
        "stressed": ("high", "bursts"),
        "LR × 10": ("high",),
        "rare tokens": ("bursts",),
    }
    assert "calm" not in groups_of(FOUR.select(scenarios=["high"]))
    scenario = {"size": "tiny", "corpus": "bytes"}
    kinds = {
        "a": {**scenario, "group": "calm", "kind": "short-warmup"},
        "b": {**scenario, "group": "stressed", "fault": "faults", "kind": "faults"},
        "c": {**scenario, "group": "calm"},
    }
    groups = groups_of(suite(scenarios=kinds))
    assert (groups["kind:short-warmup"], groups["kind:faults"]) == (("a",), ("b",))
    assert "kind:calm" not in groups


def test_only_runs_that_both_have_trained_are_compared() -> None:
    of = suite(seeds=2)
    rows = [
        row("calm", 0, "nothing", 1.0),
        row("calm", 0, "branching", 0.9),
        row("calm", 1, "nothing", 5.0),  # branching is not there
        row("high", 0, "nothing", 1.0),
        row("high", 0, "branching", 0.0, ended="failed", error="fell over"),
        row("high", 1, "branching", 0.0),
        row("bursts", 0, "nothing", 1.0),
        row("bursts", 0, "branching", 1.7, ended="diverged"),  # counts, as bad as it is
    ]
    found = results(of, rows)
    against = of_method(found, "branching")
    assert against["against_nothing"]["value"] == pytest.approx((-0.1 + 0.7) / 2)
    assert against["against_nothing"]["pairs"] == 2
    assert (against["cells"], against["failed"], against["diverged"]) == (4, 1, 1)
    assert found["cells"] == {"wanted": 16, "there": 8, "failed": 1, "diverged": 1, "seconds": 8.0}
    assert not found["finished"]
    assert found["failed"] == [
        {"scenario": "high", "seed": 0, "method": "branching", "error": "fell over"}
    ]


def test_rates_are_of_sums_and_shares_are_means() -> None:
    of = suite(seeds=2, methods=["nothing"]).select(scenarios=["calm"])
    rows = [
        row(
            "calm",
            0,
            "nothing",
            1.0,
            instability={"events": 3, "steps": 100, "per_100k": 3000.0},
            wasted=0.1,
            drafting=0.0,
        ),
        row(
            "calm",
            1,
            "nothing",
            1.0,
            instability={"events": 0, "steps": 20, "per_100k": 0.0},
            wasted=0.3,
            total_flops=50.0,
        ),
    ]
    rows[1]["recovery"] = {"mean": None, "median": None, "events": 0, "unrecovered": 0}
    rows[0]["recovery"] = {"mean": 8.0, "median": 8.0, "events": 3, "unrecovered": 1}
    there = of_method(results(of, rows), "nothing")
    assert there["instability"]["value"] == pytest.approx(1e5 * 3 / 120)
    assert there["recovery"]["value"] == pytest.approx(8)
    assert there["wasted"]["value"] == pytest.approx(0.2)
    assert there["spent"]["value"] == pytest.approx(0.75)


def test_regret_is_to_the_best_static_setting_of_each_scenario() -> None:
    of = suite(
        seeds=2, methods=["nothing", "zclip", "branching"], hindsight=["static-3", "static-0.3"]
    ).select(scenarios=["calm", "high"])
    losses = {
        ("calm", "nothing"): (1.0, 1.2),
        ("calm", "zclip"): (1.1, 1.3),
        ("calm", "branching"): (1.0, 1.3),
        ("calm", "static-3"): (0.0,),  # a seed is missing: no fair comparison
        ("calm", "static-0.3"): (2.0, 2.0),
        ("high", "nothing"): (2.0, 2.0),
        ("high", "zclip"): (1.9, 1.9),
        ("high", "branching"): (1.5, 1.7),
        ("high", "static-3"): (3.0, 3.0),
        ("high", "static-0.3"): (1.4, 1.5),
    }
    rows = [
        row(scenario, seed, method, loss)
        for (scenario, method), by in losses.items()
        for seed, loss in enumerate(by)
    ]
    found = results(of, rows)
    assert [(best["scenario"], best["method"]) for best in found["hindsight"]] == [
        ("calm", "nothing"),
        ("high", "static-0.3"),
    ]
    assert of_method(found, "branching", "calm")["regret"]["value"] == pytest.approx(0.05)
    assert of_method(found, "branching", "stressed")["regret"]["value"] == pytest.approx(0.15)
    assert of_method(found, "nothing", "calm")["regret"]["value"] == 0
    assert of_method(found, "static-0.3")["hindsight"]
    assert is_static("clip-1.0")
    assert not is_static("tuned")


def test_decisions_weigh_as_many_as_there_are(found: Found) -> None:
    there = of_method(found, "branching", "calm", "decisions")
    assert there["invoked"]["value"] == pytest.approx(1000 * 3 / 50)
    assert there["accepted"]["value"] == pytest.approx(0.5)
    assert there["coverage"]["value"] == pytest.approx(0.75)
    assert there["verify_steps"]["value"] == pytest.approx(15)
    assert there["verify_cost"]["value"] == pytest.approx(0.1)
    assert not [row for row in found["decisions"] if row["method"] != "branching"]

    def one(seed: int, **more: Any) -> dict[str, Any]:
        decisions = {
            "invoked": 1,
            "verified": 1,
            "accepted": 0,
            "gap": None,
            "coverage": None,
            "verify_steps": 0,
            **more,
        }
        return row("calm", seed, "branching", 1.0, decisions=decisions)

    rows = [
        one(0, verified=9, gap=0.1, coverage=0.5),
        one(1, verified=1, gap=0.3, coverage=1.0),
        one(2, verified=5),
    ]
    there = of_method(results(suite(seeds=3), rows), "branching", "all", "decisions")
    assert there["gap"]["value"] == pytest.approx(0.12)
    assert there["coverage"]["value"] == pytest.approx(0.55)


def test_goals_are_checked_one_by_one(found: Found) -> None:
    assert goal(found, "branching against pbt on stressed")["met"] is True
    assert goal(found, "branching against zclip on stressed")["interval"][1] < 0
    assert goal(found, "on calm scenarios")["met"] is True
    quarter = goal(found, "branching-quarter against pbt")
    assert (quarter["met"], quarter["measured"]) == (True, pytest.approx(-0.01))
    assert goal(found, "compute of branching-quarter")["measured"] == pytest.approx(0.25)
    assert goal(found, "compute of branching-quarter")["met"] is True
    assert goal(found, "instability events")["measured"] == pytest.approx(1)
    assert goal(found, "wasted") == {
        **goal(found, "wasted"),
        "measured": pytest.approx(0.08),
        "met": True,
    }
    assert goal(found, "drafted") == {
        **goal(found, "drafted"),
        "measured": pytest.approx(0.02),
        "met": False,
    }
    assert all(
        set(goal) == {"what", "goal", "measured", "interval", "met"} for goal in found["goals"]
    )


def test_a_goal_that_is_missed_or_not_measured_says_so() -> None:
    of = suite(seeds=3, methods=["nothing", "branching"])
    # Better on the whole, but not on every run: with an interval that reaches 0 it is not shown.
    rows = made(of, {"nothing": 0.0, "branching": 0.0})
    for at in rows:
        at["log_final_loss"] += (
            (0.1 if at["seed"] else -0.25) if at["method"] == "branching" else 0.0
        )
    found = results(of, rows)
    stressed = goal(found, "branching against nothing on stressed")
    assert stressed["measured"] < 0 < stressed["interval"][1]
    assert stressed["met"] is False
    assert goal(found, "on calm scenarios")["met"] is False
    assert goal(found, "branching-quarter against pbt") == {
        **goal(found, "branching-quarter against pbt"),
        "measured": None,
        "interval": None,
        "met": None,
    }
    assert goal(found, "instability events")["met"] is False
    empty = results(of, [])
    assert all(goal["met"] is None for goal in empty["goals"])
    assert empty["hindsight"] == []


def test_results_are_json_and_tables(
    found: Found, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    json.dumps(plain(found), allow_nan=False)
    with Screen("compare", 3, quiet=False) as screen:
        screen.tables(found)
    out = capsys.readouterr().out
    for words in (
        "Stressed scenarios (2)",
        "Calm scenarios (2)",
        "-4.8 [",
        "rare tokens",
        "Goals",
        "Decisions",
        "high: static-0.3",
    ):
        assert words in out
    assert "72 of 72 cells, 0 diverged, 0 failed." in out
    assert "NO" in out
    assert "…" not in out  # in a file or a pipe nothing is cut off
    with Screen("compare", 3, quiet=True) as screen:
        screen.tables(found)
        screen.tables(results(FOUR, []))
    assert capsys.readouterr().out == ""


def test_failed_cells_are_told() -> None:
    rows = [
        row("calm", seed, "branching", 1.0, ended="failed", error=f"no {seed}")
        for seed in range(12)
    ]
    said = counts(results(suite(seeds=12, methods=["branching"]), rows))
    assert said.startswith(
        "12 of 48 cells, 0 diverged, 12 failed.\n  branching on calm, seed 0: no 0\n"
    )
    assert "and 2 other kinds of failures, see results.json" in said
    assert said.count("→ train it alone to see more") == 10
    assert said.endswith("delete its file in the folder cells.")
    assert (minutes(3), minutes(70), minutes(600), minutes(9000)) == (
        "a minute",
        "2 minutes",
        "10 minutes",
        "2.5 hours",
    )
