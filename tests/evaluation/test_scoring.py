"""Evaluation as a whole: counts, groups, refusals, and benchmarks from files and the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.lengths import either
from tests.support.sandboxes import sandbox
from trainenv.data.tasks import generate
from trainenv.evaluation import (
    Limits,
    ProgramProblem,
    Sampler,
    code_contests,
    evaluate,
    gsm8k,
    human_eval,
    math500,
    mbpp,
    score,
)
from trainenv.evaluation.benchmarks.answers import boxed, last_number
from trainenv.evaluation.sandbox import check, check_all
from trainenv.types import UserError

SLOW = Limits(wall_s=60, cpu_s=30)
FEW = (0, 32, 38, 50, 53, 129, 162)  # helpers in the prompt, floats, lists of lists, MD5


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_tasks_are_counted_without_a_sandbox() -> None:
    tasks = generate(seed=0, count=10)
    texts = [[task.solution, task.wrong[0], f" {task.solution}\n", ""] for task in tasks]
    result = score(tasks, texts, ks=(1, 2, 4))
    assert result.pass_at[1].value == result.exact_match.value == 0.5
    assert result.pass_at[2].value == pytest.approx(5 / 6)
    assert result.pass_at[4].value == 1
    assert result.by("kind") == {task.kind: 0.5 for task in tasks}
    assert set(result.by("difficulty")) == {float(task.difficulty) for task in tasks}
    json.dumps(result.record(), allow_nan=False)
    with pytest.raises(UserError, match="kind or difficulty, found 'name'"):
        result.by("name")


def test_another_right_program_passes_without_an_exact_match() -> None:
    task = next(task for task in generate(seed=0, count=40) if task.kind == "number_words")
    result = score([task], [[task.solution + " + 0"]])
    assert (result.pass_at[1].value, result.exact_match.value) == (1, 0)


def test_what_can_not_be_scored_is_a_sentence() -> None:
    tasks = generate(seed=0, count=2)
    with pytest.raises(UserError, match="needs at least one problem"):
        score([], [])
    with pytest.raises(UserError, match="expected completions of 2 problems, found those of 1"):
        score(tasks, [["x"]])
    for ks in ((100,), (0,), (), (1, 3)):
        with pytest.raises(UserError, match="from 1 to the number of samples of each problem, 2"):
            score(tasks, [["x", "y"]] * 2, ks=ks)


def test_no_program_runs_without_a_sandbox() -> None:
    """The refusal comes before anything is generated: the model is none."""
    with pytest.raises(UserError, match="164 of these problems need generated programs to be run"):
        evaluate(None, None, human_eval(), sampler=Sampler())  # type: ignore[arg-type]


def test_programs_are_run_and_their_reasons_kept() -> None:
    problems = human_eval()[:2]
    wrong = "    return None\n"
    texts = [[problem.solution, wrong, problem.solution] for problem in problems]
    result = score(problems, texts, ks=(1, 3), sandbox=sandbox(SLOW))
    assert result.pass_at[1].value == pytest.approx(2 / 3)
    assert result.pass_at[3].value == 1
    assert [len(problem.reasons) for problem in result.problems] == [1, 1]
    assert result.problems[0].exact == 2


def test_the_solutions_of_human_eval_pass() -> None:
    problems = human_eval()
    assert len(problems) == 164
    chosen = either(short=[problems[place] for place in FEW], long=problems)
    jobs = [(problem.program(problem.solution), problem.tests) for problem in chosen]
    verdicts = check_all(sandbox(SLOW), jobs, workers=2)
    assert not {one.name: v.reason for one, v in zip(chosen, verdicts) if not v.passed}


def test_empty_completions_of_human_eval_fail() -> None:
    chosen = human_eval()[: either(short=3, long=164)]
    verdicts = check_all(sandbox(SLOW), [(one.program(""), one.tests) for one in chosen], workers=2)
    assert not [one.name for one, verdict in zip(chosen, verdicts) if verdict.passed]


# ── other benchmarks ──────────────────────────────────────────────────────────────────────────────


def test_mbpp_is_read_from_a_file(tmp_path: Path) -> None:
    row = {
        "task_id": 11,
        "text": "Write a function to add.",
        "code": "def add(a, b):\n    return a + b\n",
        "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"],
        "test_setup_code": "",
    }
    newer = {**row, "task_id": 12, "test_imports": ["import math"]}
    newer["prompt"] = newer.pop("text")
    newer["test_list"] = ["assert math.isclose(add(1, 2), 3)"]
    first, second = mbpp(written(tmp_path / "test.jsonl", row, newer))
    assert first.name == "MBPP/11"
    assert first.prompt.startswith('"""\nWrite a function to add.\nassert add(1, 2) == 3\n')
    for problem in (first, second):
        assert check(sandbox(), problem.program(problem.solution), problem.tests).reason == ""
        wrong = problem.program("def add(a, b):\n    return a - b\n")
        assert not check(sandbox(), wrong, problem.tests).passed
    with pytest.raises(UserError, match="rows of MBPP with text"):
        mbpp(written(tmp_path / "other.jsonl", {"x": 1}))


def test_contests_are_read_in_both_forms(tmp_path: Path) -> None:
    columns = {
        "name": "sum",
        "description": "Add two numbers.",
        "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
        "private_tests": {"input": ["5 5\n"], "output": ["10\n"]},
        "generated_tests": {"input": [], "output": []},
        "solutions": {
            "language": [2, 3],
            "solution": ["int main", "print(sum(map(int, input().split())))"],
        },
    }
    records = {
        **columns,
        "name": "again",
        "public_tests": [{"input": "1 2\n", "output": "3\n"}],
        "solutions": [
            {"language": 3, "solution": "a, b = input().split()\nprint(int(a) + int(b))"}
        ],
    }
    untested = {"name": "none", "description": "x", "public_tests": None}
    folder = tmp_path / "copy"
    folder.mkdir()
    written(folder / "code-contests-test.jsonl", columns, records, untested)
    problems = code_contests(folder)
    assert [problem.name for problem in problems] == ["sum", "again"]
    for problem in problems:
        assert isinstance(problem, ProgramProblem)
        assert len(problem.tests) == 2  # type: ignore[arg-type]
        assert check(sandbox(), problem.program(problem.solution), problem.tests).passed
        assert not check(sandbox(), problem.program("print(3)"), problem.tests).passed
    assert len(code_contests(folder, most=1)) == 1
    assert len(code_contests(folder, tests=1)[0].tests) == 1  # type: ignore[arg-type]


def test_answers_are_found_in_texts(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 1,007"}
    (problem,) = gsm8k(written(tmp_path / "gsm8k.jsonl", row))
    assert problem.is_correct(" so 1007.0 is it")
    assert not problem.is_correct("1008")
    assert not problem.is_correct("no number")
    row = {"problem": "Half?", "solution": r"It is \boxed{\frac{1}{2}}."}
    (problem,) = math500(written(tmp_path / "math.jsonl", row))
    assert problem.is_correct(r"\boxed{1} or \boxed{ \frac{1}{2} }")
    assert not problem.is_correct(r"\frac{1}{2}")
    with pytest.raises(UserError, match="expected rows with problem and solution"):
        list(math500(written(tmp_path / "other.jsonl", {"x": 1})))


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 5 6", "5"), ("1 2 -3.50", "-3.5"), ("a 1,234,567 b", "1234567"), ("none", "")],
)
def test_the_number_has_one_form(text: str, number: str) -> None:
    assert last_number(text) == number


def test_a_box_that_is_not_closed_is_none() -> None:
    assert boxed(r"\boxed{1") == ""
    assert boxed(r"\boxed{a{b}c}") == "a{b}c"


def test_a_missing_copy_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a file or a folder with tasks"):
        mbpp(tmp_path / "nothing")
    with pytest.raises(UserError, match="expected a file with test in its name"):
        mbpp(tmp_path)
    broken = tmp_path / "test.jsonl"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="to be whole and readable"):
        mbpp(broken)
    broken.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected a JSON object in line 1"):
        mbpp(broken)
