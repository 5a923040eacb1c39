"""Tasks with verifiable solutions, and samples that say if a solution is right."""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.data.tasks import interpreter
from trainenv.data.tasks.language import ProgramError, Value

RESULT = "y"
"""Variable that holds the result of a program."""


@dataclass(frozen=True, slots=True)
class Case:
    """One check of a program.

    Attributes:
        inputs: Name and value of each variable that is set before the program runs.
        expected: Value of the result.
    """

    inputs: tuple[tuple[str, Value], ...]
    expected: Value


@dataclass(frozen=True, slots=True)
class Task:
    """A small task of the embedded generator.

    The solution is either the result of the program in the prompt, as text, or a program in the
    little language.

    Attributes:
        name: Name of the task, unique among those of one seed.
        kind: Kind of the task.
        difficulty: Difficulty, 1 for the easiest.
        prompt: Text that a model completes.
        solution: Right solution.
        wrong: Plausible wrong solutions, at least one; all are verified to be wrong.
        cases: Checks of a solution that is a program; empty where the solution is a result.
    """

    name: str
    kind: str
    difficulty: int
    prompt: str
    solution: str
    wrong: tuple[str, ...]
    cases: tuple[Case, ...] = ()

    def is_correct(self, solution: str) -> bool:
        """Check a solution: the text of a result, or a program that passes all cases.

        Blank characters around it do not count.
        """
        solution = solution.strip()
        if not self.cases:
            return solution == self.solution
        try:
            return all(
                interpreter.run(solution, dict(case.inputs)).get(RESULT) == case.expected
                for case in self.cases
            )
        except ProgramError:
            return False


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with one solution.

    Attributes:
        task: Name of the task; samples of one task share a prompt.
        prompt: Text that the solution follows.
        solution: Text of the solution.
        is_correct: True for a right solution, False for a wrong one, None if it is unknown.
        difficulty: Difficulty of the task; higher is harder.
    """

    task: str
    prompt: str
    solution: str
    is_correct: bool | None
    difficulty: float = 0.0

    @property
    def reward(self) -> float:
        """Reward of the solution: 1 right, 0 wrong, NaN unknown."""
        if self.is_correct is None:
            return float("nan")
        return float(self.is_correct)
