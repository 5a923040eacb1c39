"""Counterfactual branches of training runs: what a world model learns from.

`sample` draws trunks, `generate` trains and branches them into a folder, `Dataset.open` reads it,
`by_trunk` and `leave_out` split it, `effects` compares every branch with the do-nothing control
beside it.
"""

from trainenv.worldmodel.dataset.actions import Randomised
from trainenv.worldmodel.dataset.contract import MakeRun, Run
from trainenv.worldmodel.dataset.dataset import Arrays, Dataset
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.effects import effects
from trainenv.worldmodel.dataset.generate import Generated, Progress, generate
from trainenv.worldmodel.dataset.splits import by_trunk, leave_action_out, leave_out, uses
from trainenv.worldmodel.dataset.trunks import SIZES, Size, Trunk, sample

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
