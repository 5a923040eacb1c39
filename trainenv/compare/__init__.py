"""Compare methods on test scenarios, healthy and faulty, each with the same FLOPs.

    suite = load_suite("quick")
    found = compare(Path("runs/compare"), suite, METHODS, measure_cell, workers=2)

Each method trains each scenario with each seed, from the same weights, on the same data, with the
same faults (common random numbers). Its budget is what a run without interventions spends; a method
that spends more has failed. Read `suite`, `runner` and `results`.
"""

from trainenv.compare.cells import measure_cell
from trainenv.compare.contract import Measure, Method
from trainenv.compare.runner import Progress, compare
from trainenv.compare.scenarios import Scenario
from trainenv.compare.suite import Suite, load_suite

__all__ = [
    "Measure",
    "Method",
    "Progress",
    "Scenario",
    "Suite",
    "compare",
    "load_suite",
    "measure_cell",
]
