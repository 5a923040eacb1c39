"""`trainenv compare`: what it says and writes, how it is stopped, and that a mistake costs one sentence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.compare_fakes import METHODS, TINY, measure
from trainenv.cli import make_parser
from trainenv.cli.compare import compare_command
from trainenv.cli.comparison_screen import Screen
from trainenv.cli.options import INTERRUPTED
from trainenv.compare import cells, runner
from trainenv.composition import methods as table
from trainenv.types import UserError

SUITE: dict[str, Any] = {
    "seeds": 2,
    "methods": ["nothing", "branching", "raises"],
    "sizes": {"tiny": TINY},
    "corpora": {"bytes": {"name": "stdlib"}},
    "overrides": {"validation": {"every": 20, "sequences": 8}},
    "scenarios": {
        "calm": {"group": "calm", "size": "tiny", "corpus": "bytes"},
        "high": {
            "group": "stressed",
            "fault": "LR × 9",
            "size": "tiny",
            "corpus": "bytes",
            "lr_factor": 9,
        },
    },
}


def args(
    suite: Any, out: Path | None = None, *, words: Sequence[str] = (), **more: Any
) -> argparse.Namespace:
    values = {
        "methods": None,
        "scenarios": None,
        "seeds": None,
        "workers": 0,
        "executor": "local",
        "keep": False,
        "shard": None,
        "json": False,
        **more,
    }
    return argparse.Namespace(suite=[*words, str(suite)], out=out, **values)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(SUITE), encoding="utf-8")  # which YAML reads
    return path


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "METHODS", METHODS)
    monkeypatch.setattr(cells, "measure_cell", measure)


@pytest.mark.usefixtures("fakes")
def test_tables_and_files(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, code = compare_command(args(suite))
    out, err = capsys.readouterr()
    assert code == 0
    assert out.startswith(
        "2 scenarios × 2 seeds × 3 methods: 12 cells in runs/compare-mine, about a minute with 1 process"
    )
    assert "Stressed scenarios (1)" in out
    assert "branching" in out
    assert "12 of 12 cells, 0 diverged, 4 failed." in out
    assert "raises on calm, seed 0 and 3 more: ZeroDivisionError: by hand\n    → train it" in out
    assert err.count("failed: ZeroDivisionError: by hand") == 4
    assert "compare: 12 of 12 cells, about" in err
    kept = json.loads(Path("runs/compare-mine/results.json").read_text(encoding="utf-8"))
    assert len(kept["rows"]) == 12
    assert kept["finished"]
    assert result["goals"][0]["what"] == kept["goals"][0]["what"]
    assert "rows" not in result


@pytest.mark.usefixtures("fakes")
def test_a_comparison_in_which_all_failed_has_compared_nothing(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = compare_command(args(suite, methods="raises"))
    assert code == 1
    assert "nothing was compared: every cell failed" in capsys.readouterr().out


@pytest.mark.usefixtures("fakes")
def test_json_keeps_stdout_for_itself(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, code = compare_command(args(suite, Path("out"), json=True))
    assert (code, capsys.readouterr().out) == (0, "")
    json.loads(json.dumps(result), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.usefixtures("fakes")
def test_parts(suite: Path) -> None:
    result, _ = compare_command(
        args(suite, Path("out"), methods="branching, nothing", scenarios="high", seeds=3)
    )
    assert result["cells"]["there"] == 6
    assert [row["method"] for row in result["methods"] if row["group"] == "all"] == [
        "branching",
        "nothing",
    ]
    assert not Path("out/runs").exists()
    compare_command(args(suite, Path("kept"), methods="nothing", keep=True))
    assert Path("kept/runs/calm/0/nothing/left.json").is_file()


@pytest.mark.usefixtures("fakes")
def test_shards_join_to_the_whole(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards train different cells, and merged they are the comparison."""
    whole, _ = compare_command(args(suite, Path("whole")))
    for number in (1, 2):
        part, code = compare_command(args(suite, Path("out"), shard=f"{number}/3"))
        assert (code, part["cells"]["there"], part["finished"]) == (0, 4, True)
    merged, code = compare_command(args(suite, Path("out"), words=["merge"]))
    assert (code, merged["cells"]["there"], merged["finished"]) == (1, 8, False)
    assert "4 of 12 cells are missing" in capsys.readouterr().out
    compare_command(args(suite, Path("out"), shard="3/3"))
    merged, code = compare_command(args(suite, Path("out"), words=["merge"]))
    assert code == 0
    assert merged["finished"]
    for name in ("scenarios", "hindsight", "goals", "failed"):
        assert merged[name] == whole[name], name


@pytest.mark.usefixtures("fakes")
def test_stopped_and_gone_on_with(
    suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any, **more: Any) -> Any:
        answers = iter([False] * 4)
        return comparing_compare(*given, **{**more, "stop": lambda: next(answers, True)})

    comparing_compare = runner.compare
    monkeypatch.setattr("trainenv.compare.compare", stopped)
    result, code = compare_command(args(suite, Path("out")))
    assert (code, result["cells"]["there"], result["finished"]) == (INTERRUPTED, 4, False)
    assert "interrupted; resume with the same command" in capsys.readouterr().out
    monkeypatch.undo()


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"methods": "nothing,branchin"}, "unknown method 'branchin'; did you mean 'branching'"),
        ({"methods": ","}, "a comparison needs methods, found none"),
        ({"scenarios": "hihg"}, "unknown scenario 'hihg'; did you mean 'high'"),
        ({"seeds": 0}, "seeds must be a whole number, at least 1, found 0"),
        ({"shard": "5/4"}, "a shard is I/N with I from 1 to N, found 5/4"),
        ({"shard": "one"}, "a shard is I/N, found 'one'"),
        ({"shard": "1/2", "words": ["merge"]}, "merge joins all shards, found --shard 1/2"),
        ({"words": ["merge"]}, "expected folders of shards in"),
        ({"workers": -1}, "--workers must be 0 (in this process) or more, found -1"),
    ],
)
def test_mistakes(more: dict[str, Any], said: str, suite: Path) -> None:
    with pytest.raises(UserError) as error:
        compare_command(args(suite, Path("out"), **more))
    assert said in str(error.value)
    assert not Path("out").exists()


@pytest.mark.parametrize("option", ["--scenarios", "--trunks"])
def test_scenarios_are_chosen_by_their_new_and_their_old_name(option: str) -> None:
    parser = make_parser()
    assert parser.parse_args(["compare", "quick", option, "high"]).scenarios == "high"
    assert parser.parse_args(["compare", "quick"]).scenarios is None


def test_a_real_run_left_alone(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is faked: it spends what it may to the last FLOP, and differs from itself by nothing."""
    names: Sequence[str] = ("nothing", "zclip")
    result, code = compare_command(
        args(suite, Path("out"), methods=",".join(names), scenarios="calm", seeds=1, keep=True)
    )
    assert code == 0
    (nothing, zclip) = (row for row in result["methods"] if row["group"] == "calm")
    assert nothing["spent"]["value"] == pytest.approx(1, abs=1e-12)
    assert zclip["against_nothing"]["value"] == 0  # which is the default
    assert result["cells"]["failed"] == 0
    rows = json.loads(Path("out/results.json").read_text(encoding="utf-8"))["rows"]
    assert all(2 < row["final_loss"] < 6 and row["steps"] == 40 for row in rows)
    assert Path("out/runs/calm/0/nothing/summary.json").is_file()
    assert "Calm scenarios (1)" in capsys.readouterr().out


@pytest.mark.usefixtures("fakes")
def test_a_method_of_ones_own(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "from tests.support.compare_fakes import branching as mine\n"
    Path("own_methods.py").write_text(own, encoding="utf-8")
    result, _ = compare_command(
        args(suite, Path("out"), methods="nothing,own_methods:mine", scenarios="high")
    )
    names = [row["method"] for row in result["methods"] if row["group"] == "all"]
    assert names == ["nothing", "own_methods:mine"]
    assert "own_methods:mine" in capsys.readouterr().out


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone:mine", "the module 'gone' of the method 'gone:mine' can't be imported: ModuleNotF"),
        (
            "json:dumpz",
            "expected a function 'dumpz' in the module 'json', found none; did you mean",
        ),
        ("pathlib:Path", "the method 'pathlib:Path' must be a function (config, folder, watch, st"),
    ],
)
def test_mistakes_in_a_method_of_ones_own(name: str, said: str, suite: Path) -> None:
    with pytest.raises(UserError) as error:
        compare_command(args(suite, Path("out"), methods=name))
    assert said in str(error.value)
    assert not Path("out").exists()


@pytest.mark.usefixtures("fakes")
def test_an_installed_method_is_found_by_its_name(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = EntryPoints(
        [
            EntryPoint("theirs", "tests.support.compare_fakes:nothing", "trainenv.methods"),
            EntryPoint("broken", "gone:mine", "trainenv.methods"),
        ]
    )
    monkeypatch.setattr(
        "trainenv.composition.named_methods.entry_points", lambda group: entries.select(group=group)
    )
    result, _ = compare_command(args(suite, Path("out"), methods="theirs", scenarios="high"))
    assert result["cells"]["failed"] == 0
    with pytest.raises(UserError, match=r"the method 'broken' \(gone:mine\) cannot be loaded"):
        compare_command(args(suite, Path("other"), methods="broken"))


@pytest.mark.usefixtures("fakes")
def test_one_seed_judges_no_goal(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = compare_command(args(suite, Path("out"), methods="nothing,branching", seeds=1))
    assert {goal["met"] for goal in result["goals"]} == {None}
    out = capsys.readouterr().out
    assert "needs 2 or more seeds" in out
    assert " NO" not in out


@pytest.mark.usefixtures("fakes")
def test_references_are_announced(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(
        json.dumps({**SUITE, "methods": ["branching"], "hindsight": ["nothing"]}), encoding="utf-8"
    )
    compare_command(args(suite, Path("out")))
    assert (
        "nothing: references that are chosen in hindsight; they do not" in capsys.readouterr().out
    )


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("width", [200, 99, 80, 60])
def test_a_narrow_window_leaves_columns_out_and_cuts_no_number(
    width: int, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_command(args(suite, Path("out"), methods="nothing,branching", json=True))
    capsys.readouterr()
    found = json.loads(Path("out/results.json").read_text(encoding="utf-8"))
    screen = Screen("x", 1, quiet=False)
    screen.out = Console(width=width, highlight=False)
    screen.tables(found)
    out = capsys.readouterr().out
    lines = out.splitlines()
    tables = [line for line in lines if line.strip().startswith(("branching ", "nothing "))]
    assert tables
    assert max(map(len, tables)) <= width
    assert "…" not in out
    (row,) = [
        row
        for row in found["methods"]
        if (row["method"], row["group"]) == ("branching", "stressed")
    ]
    assert f"{row['final_loss']:.3f}" in out
    assert ("Left out for want of width: draft %" in out) == (width < 200)


@pytest.mark.usefixtures("fakes")
def test_a_very_narrow_window_has_lists(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_command(args(suite, Path("out"), methods="nothing,branching", json=True))
    capsys.readouterr()
    screen = Screen("x", 1, quiet=False)
    screen.out = Console(width=50, highlight=False)
    screen.tables(json.loads(Path("out/results.json").read_text(encoding="utf-8")))
    out = capsys.readouterr().out
    assert "  branching\n    change %: " in out
    assert "─" not in out
