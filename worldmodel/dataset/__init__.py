"""Counterfactual branches of training runs: what a world model learns from.

`sample` draws trunks, `generate` trains and branches them into a folder, `Dataset.open` reads it, `by_trunk` and `leave_out`
split it, `effects` compares every branch with the do-nothing control beside it.
"""

from worldmodel.dataset.actions import Randomised
from worldmodel.dataset.contract import MakeRun, Run
from worldmodel.dataset.dataset import Arrays, Dataset
from worldmodel.dataset.design import Design
from worldmodel.dataset.effects import effects
from worldmodel.dataset.generate import Generated, Progress, generate
from worldmodel.dataset.splits import by_trunk, leave_action_out, leave_out, uses
from worldmodel.dataset.trunks import SIZES, Size, Trunk, sample

__all__ = [
    "SIZES",
    "Arrays",
    "Dataset",
    "Design",
    "Generated",
    "MakeRun",
    "Progress",
    "Randomised",
    "Run",
    "Size",
    "Trunk",
    "by_trunk",
    "effects",
    "generate",
    "leave_action_out",
    "leave_out",
    "sample",
    "uses",
]
