"""Problems of benchmarks: a prompt, and a way to tell if a completion is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainenv.evaluation.sandbox import Tests


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramProblem:
    """A problem whose completion is a Python program, or the rest of one; it needs a sandbox.

    Attributes:
        name: Name of the problem.
        prompt: Text that a model completes.
        tests: Tests of the program.
        solution: Right completion.
        head: Text of the program before the completion.
        stops: Texts that end a completion.
    """

    name: str
    prompt: str
    tests: Tests
    solution: str
    head: str = ""
    stops: tuple[str, ...] = ()

    def program(self, completion: str) -> str:
        """Return the whole program of a completion."""
        return f"{self.head}{completion}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerProblem:
    """A problem whose completion ends in an answer; it needs no sandbox.

    Attributes:
        name: Name of the problem.
        prompt: Text that a model completes.
        solution: Right answer.
        answer: Function that finds the answer in a completion.
        stops: Texts that end a completion.
    """

    name: str
    prompt: str
    solution: str
    answer: Callable[[str], str]
    stops: tuple[str, ...] = ()

    def is_correct(self, completion: str) -> bool:
        """Compare the answer in a completion with the right one."""
        return self.answer(completion) == self.answer(self.solution) != ""
