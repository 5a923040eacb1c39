"""Generated tasks: labels that agree with the interpreter, and the same tasks from the same seed."""

from __future__ import annotations

import pytest

from tests.support.lengths import either
from trainenv.data.stressors import philox
from trainenv.data.tasks import ProgramError, Task, generate, right_sample, run, wrong_sample
from trainenv.data.tasks.kinds import HARDEST, KINDS
from trainenv.types import UserError

COUNT = either(short=200, long=4000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difficulty", range(1, HARDEST + 1))
def test_the_label_is_the_value_of_the_program(kind: str, difficulty: int) -> None:
    """The generator computes results in Python; the interpreter runs the program in the prompt."""
    for place in range(COUNT // 10):
        draft = KINDS[kind](philox(7, kind, place), difficulty)
        if draft.program:
            assert draft.prompt == f"{draft.program}\n? "
            assert str(run(draft.program)["y"]) == draft.solution
            assert not draft.cases
        else:
            assert len(draft.cases) >= 4
            for case in draft.cases:
                assert run(draft.solution, dict(case.inputs))["y"] == case.expected


def test_wrong_solutions_are_wrong_by_the_interpreter() -> None:
    for task in generate(seed=1, count=COUNT, difficulties=(1, HARDEST)):
        assert task.is_correct(task.solution)
        assert task.is_correct(f" {task.solution}\n")
        assert task.wrong
        assert len(set(task.wrong)) == len(task.wrong)
        for wrong in task.wrong:
            assert not task.is_correct(wrong)
            assert wrong.strip() != task.solution.strip()
            if task.cases:
                assert any(
                    value_of(wrong, dict(case.inputs)) != case.expected for case in task.cases
                )


def value_of(source: str, inputs: dict) -> object:
    try:
        return run(source, inputs).get("y")
    except ProgramError:
        return None


def test_wrong_solutions_are_plausible() -> None:
    """Most wrong programs are valid, and most wrong results are near the right one in length."""
    found = generate(seed=2, count=COUNT)
    programs = [
        value_of(wrong, dict(task.cases[1].inputs)) is not None
        for task in found
        if task.cases
        for wrong in task.wrong
    ]
    assert sum(programs) > 0.95 * len(programs)
    results = [
        abs(len(wrong) - len(task.solution)) <= 2
        for task in found
        if not task.cases
        for wrong in task.wrong
    ]
    assert sum(results) > 0.9 * len(results)


def test_tasks_are_a_function_of_seed_part_and_place() -> None:
    first = generate(seed=3, count=30)
    assert generate(seed=3, count=30) == first
    assert generate(seed=3, count=10, start=20) == first[20:]
    assert generate(seed=4, count=30) != first
    assert generate(seed=3, count=30, part="test") != first
    assert [task.kind for task in first] == list(KINDS) * 3
    assert len({task.name for task in first}) == 30
    assert {task.kind for task in generate(seed=0, count=9, kinds=("sums", "loops"))} == {
        "sums",
        "loops",
    }


def test_harder_tasks_are_longer() -> None:
    def length(difficulty: int) -> float:
        found = generate(seed=0, count=100, difficulties=(difficulty, difficulty))
        assert {task.difficulty for task in found} == {difficulty}
        return sum(len(task.prompt) + len(task.solution) for task in found) / 100

    lengths = [length(difficulty) for difficulty in range(1, HARDEST + 1)]
    assert lengths == sorted(lengths)


def test_samples_of_a_task_share_its_prompt() -> None:
    task = generate(seed=0, count=1)[0]
    right = right_sample(task)
    assert (right.prompt, right.solution, right.is_correct) == (task.prompt, task.solution, True)
    assert right.reward == 1
    for place in range(5):
        wrong = wrong_sample(task, place)
        assert wrong.prompt == task.prompt
        assert wrong.solution == task.wrong[place % len(task.wrong)]
        assert (wrong.is_correct, wrong.reward) == (False, 0)


def test_a_program_that_fails_is_wrong() -> None:
    task = next(task for task in generate(seed=0, count=40) if task.cases)
    for solution in ("", "y=1//0", "while 1{}", "z=1", "import os", task.solution + ";y=y+1"):
        assert not task.is_correct(solution)


def test_a_result_is_compared_as_text() -> None:
    task = Task("t", "sums", 1, "y=3+4\n? ", "7", ("8",))
    assert task.is_correct("7 ")
    for other in ("07", "7.0", "y=7", "3+4", "", "7 7"):
        assert not task.is_correct(other)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kinds": ("sums", "poems")}, "kinds of tasks are sums, .*found poems"),
        ({"difficulties": (0, 1)}, "from 1 to 4"),
        ({"difficulties": (1, 5)}, "from 1 to 4"),
        ({"difficulties": (3, 2)}, "the least first, found 3 and 2"),
    ],
)
def test_settings_out_of_range_are_a_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generate(seed=0, count=1, **settings)
