"""Methods × trunks at equal compute: who trains which run best, with everything that it does charged to it.

    suite = load_suite("quick")
    found = compare(Path("runs/compare"), suite, methods, measure, workers=2)

A method trains every trunk with every seed, from the same weights, on the same data, with the same
faults (common random numbers). What it may spend is what the run spends when left alone; one that
spends more has failed. Read `suite`, `comparing`, `results`.
"""

from trainenv.compare.contract import Measure, Method
from trainenv.compare.runner import Progress, compare
from trainenv.compare.suite import Suite, load_suite
from trainenv.compare.trunks import Trunk

__all__ = ["Measure", "Method", "Progress", "Suite", "Trunk", "compare", "load_suite"]
