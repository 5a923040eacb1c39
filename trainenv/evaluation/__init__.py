"""Evaluation of trained models on tasks with verifiable solutions.

    from trainenv.evaluation import Bubblewrap, Sampler, evaluate, human_eval

    result = evaluate(model, tokenizer, human_eval(), sampler=Sampler(), sandbox=Bubblewrap())

`generation` makes samples, `evaluation` checks and counts them, `pass_at_k` and `exact_match` are
the measures, and `token_errors` groups losses. `benchmarks` has the problems, and `sandbox` runs
generated programs.
"""

from trainenv.evaluation.benchmarks import code_contests, gsm8k, human_eval, math500, mbpp
from trainenv.evaluation.codec import Codec
from trainenv.evaluation.evaluation import Evaluation, ProblemResult, evaluate, score
from trainenv.evaluation.exact_match import exact_match, is_exact
from trainenv.evaluation.generation import Sampler
from trainenv.evaluation.pass_at_k import Share, bootstrapped, mean_pass_at_k, pass_at_k
from trainenv.evaluation.problems import AnswerProblem, ProgramProblem
from trainenv.evaluation.sandbox import Bubblewrap, Limits, RlimitsOnly, Sandbox
from trainenv.evaluation.token_errors import TokenErrors, token_errors

__all__ = [
    "AnswerProblem",
    "Bubblewrap",
    "Codec",
    "Evaluation",
    "Limits",
    "ProblemResult",
    "ProgramProblem",
    "RlimitsOnly",
    "Sampler",
    "Sandbox",
    "Share",
    "TokenErrors",
    "bootstrapped",
    "code_contests",
    "evaluate",
    "exact_match",
    "gsm8k",
    "human_eval",
    "is_exact",
    "math500",
    "mbpp",
    "mean_pass_at_k",
    "pass_at_k",
    "score",
    "token_errors",
]
