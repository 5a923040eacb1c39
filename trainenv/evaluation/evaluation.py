"""Evaluation of a model on tasks: samples are generated, checked and counted.

result = evaluate(model, tokenizer, tasks, sampler=Sampler(samples=10), ks=(1, 10))
print(result.pass_at[10])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import nn

from trainenv.evaluation.exact_match import is_exact
from trainenv.evaluation.generation import Sampler
from trainenv.evaluation.pass_at_k import Share, bootstrapped, mean_pass_at_k
from trainenv.evaluation.problems import ProgramProblem
from trainenv.evaluation.sandbox import Sandbox, check_all, check_sandbox
from trainenv.types import UserError


class Checked(Protocol):
    """A problem that checks its completions itself, as `Task` and `AnswerProblem` do."""

    @property
    def name(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def solution(self) -> str: ...
    def is_correct(self, completion: str, /) -> bool: ...


Problem = Checked | ProgramProblem


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """Result of one problem.

    Attributes:
        name: Name of the problem.
        kind: Kind of the problem; empty where it has none.
        difficulty: Difficulty of the problem; 0 where it is unknown.
        samples: Number of samples.
        right: Number of right samples.
        exact: Number of samples that equal the solution.
        reasons: Reason of each wrong program; empty for other problems.
    """

    name: str
    kind: str
    difficulty: float
    samples: int
    right: int
    exact: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        exact_match: Share of samples that equal the solution, over problems.
        pass_at: k → pass@k over problems.
        problems: Result of each problem.
    """

    exact_match: Share
    pass_at: Mapping[int, Share]
    problems: tuple[ProblemResult, ...] = field(repr=False)

    def by(self, what: str) -> dict[Any, float]:
        """Return pass@1 of the problems of each `kind` or `difficulty`.

        Raises:
            UserError: `what` is neither.
        """
        if what not in ("kind", "difficulty"):
            raise UserError(f"problems are grouped by kind or difficulty, found {what!r}")
        groups: dict[Any, list[float]] = {}
        for problem in self.problems:
            groups.setdefault(getattr(problem, what), []).append(problem.right / problem.samples)
        return {name: sum(values) / len(values) for name, values in sorted(groups.items())}

    def record(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "exact_match": asdict(self.exact_match),
            "pass_at": {str(k): asdict(share) for k, share in self.pass_at.items()},
            "problems": [asdict(problem) for problem in self.problems],
        }


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    sampler: Sampler,
    ks: Sequence[int] = (1,),
    sandbox: Sandbox | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Generate samples for each problem and score them.

    Args:
        model: Causal language model; see `Sampler`.
        tokenizer: Tokenizer of ours or of transformers.
        problems: Problems to solve.
        sampler: Sampling; its number of samples bounds k.
        ks: Numbers k of pass@k.
        sandbox: Isolation of generated programs; without one none is run.
        workers: Number of programs that run at once; one a processor by default.

    Raises:
        UserError: A k is above the number of samples, there is no problem, or problems have
            programs and there is no sandbox.
    """
    _check(problems, sampler.samples, ks, sandbox)
    stops = [getattr(problem, "stops", ()) for problem in problems]
    completions = sampler(model, tokenizer, [problem.prompt for problem in problems], stops)
    return score(problems, completions, ks=ks, sandbox=sandbox, workers=workers, seed=sampler.seed)


def score(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    *,
    ks: Sequence[int] = (1,),
    sandbox: Sandbox | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score completions that are made already.

    Args:
        problems: Problems.
        completions: Completions of each problem, without the prompt.
        ks: Numbers k of pass@k.
        sandbox: Isolation of generated programs; without one none is run.
        workers: Number of programs that run at once; one a processor by default.
        seed: Random seed of the bootstrap.

    Raises:
        UserError: As for `evaluate`.
    """
    if len(completions) != len(problems):
        raise UserError(
            f"expected completions of {len(problems)} problems, found those of {len(completions)}; "
            "give a list of completions for each problem"
        )
    _check(problems, min(map(len, completions), default=0), ks, sandbox)
    reasons = _run_programs(problems, completions, sandbox, workers)
    results = tuple(
        _result(problem, texts, reasons.get(place))
        for place, (problem, texts) in enumerate(zip(problems, completions))
    )
    counts = [(result.samples, result.right) for result in results]
    return Evaluation(
        exact_match=bootstrapped([one.exact / one.samples for one in results], seed=seed),
        pass_at={k: mean_pass_at_k(counts, k, seed=seed) for k in ks},
        problems=results,
    )


def _check(
    problems: Sequence[Problem], samples: int, ks: Sequence[int], sandbox: Sandbox | None
) -> None:
    """Refuse what can't be evaluated, before anything is generated or run."""
    if not problems:
        raise UserError("an evaluation needs at least one problem, found none; give some")
    if not ks or min(ks) < 1 or max(ks) > samples:
        raise UserError(
            "every k of pass@k must be from 1 to the number of samples of each problem, "
            f"{samples}, found {', '.join(map(str, ks)) or 'none'}; generate more samples or "
            "choose smaller k"
        )
    programs = sum(isinstance(problem, ProgramProblem) for problem in problems)
    if programs and sandbox is None:
        raise UserError(
            f"{programs} of these problems need generated programs to be run: expected a sandbox, "
            "found none; pass sandbox=Bubblewrap() of trainenv.evaluation"
        )
    if programs and sandbox is not None:
        check_sandbox(sandbox)


def _run_programs(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    sandbox: Sandbox | None,
    workers: int | None,
) -> dict[int, list[str]]:
    """Return the reason of each program's failure, empty if it passed, by place of the problem."""
    jobs = [
        (place, problem.program(text), problem.tests)
        for place, (problem, texts) in enumerate(zip(problems, completions))
        if isinstance(problem, ProgramProblem)
        for text in texts
    ]
    if sandbox is None or not jobs:
        return {}
    # A program that several samples have in common runs once.
    once = list(dict.fromkeys(jobs))
    programs = [(source, tests) for _, source, tests in once]
    verdicts = dict(zip(once, check_all(sandbox, programs, workers=workers)))
    reasons: dict[int, list[str]] = {}
    for job in jobs:
        verdict = verdicts[job]
        reason = ""
        if not verdict.passed:
            reason = verdict.reason or "failed"
        reasons.setdefault(job[0], []).append(reason)
    return reasons


def _result(problem: Problem, texts: Sequence[str], reasons: Sequence[str] | None) -> ProblemResult:
    if isinstance(problem, ProgramProblem):
        assert reasons is not None, "programs have been run"
        right = sum(not reason for reason in reasons)
    else:
        right = sum(problem.is_correct(text) for text in texts)
    return ProblemResult(
        name=problem.name,
        kind=str(getattr(problem, "kind", "")),
        difficulty=float(getattr(problem, "difficulty", 0)),
        samples=len(texts),
        right=right,
        exact=sum(is_exact(text, problem.solution) for text in texts),
        reasons=tuple(reason for reason in reasons or () if reason),
    )
