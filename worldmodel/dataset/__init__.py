"""Data set of counterfactual branches of training runs, from which a world model learns.

    generate("branches", sample(200, seed=0), make_run, workers=4)
    data = Dataset.open("branches")
    parts = by_trunk(data.trunks, {"train": 0.8, "test": 0.2})

A *trunk* is a small run, healthy or faulty. `sample` draws trunks, and `generate` trains and
branches them into a folder. `by_trunk` and `leave_out` split the data set. `effects` compares every
branch with the do-nothing control of its snapshot.
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
