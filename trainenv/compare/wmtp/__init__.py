"""Compare weightings of multi-token prediction at equal FLOPs, on tasks with verifiable solutions.

    preset = load_preset("quick")
    found = compare(Path("runs/wmtp"), preset)

`preset` has the settings, `methods` the objectives, `cells` trains and measures one method with one
seed, `evaluation` measures a finished run, `table` puts methods side by side.
"""

from trainenv.compare.wmtp.cells import Task, play, read_cell, train_reference, train_run
from trainenv.compare.wmtp.evaluation import EVALUATION, evaluate_run
from trainenv.compare.wmtp.methods import METHODS, config_of, flops_of
from trainenv.compare.wmtp.preset import EvaluationSettings, Preset, load_preset
from trainenv.compare.wmtp.runner import check_folder, compare
from trainenv.compare.wmtp.table import table

__all__ = [
    "EVALUATION",
    "METHODS",
    "EvaluationSettings",
    "Preset",
    "Task",
    "check_folder",
    "compare",
    "config_of",
    "evaluate_run",
    "flops_of",
    "load_preset",
    "play",
    "read_cell",
    "table",
    "train_reference",
    "train_run",
]
