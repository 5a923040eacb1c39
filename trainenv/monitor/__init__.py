"""The monitor of a run: telemetry, a clean probe, the hypergradient, and the triggers made of them.

    index = UncertaintyIndex()
    reading = index.update(telemetry)            # or update(loss=…, grad_norm=…)
    reading.index, reading.fired

`UncertaintyIndex` fires on sudden trouble. `RegressionTrigger` finds slow harm, with `HarmWatch`
for lasting rises of the probe loss. A training run has a `Monitor`, which records the steps, and
measures with `Probe` and `hypergradient`.
"""

from trainenv.monitor.harm import Harm, HarmWatch
from trainenv.monitor.regression import Regression, RegressionTrigger
from trainenv.monitor.uncertainty import UncertaintyIndex

__all__ = ["Harm", "HarmWatch", "Regression", "RegressionTrigger", "UncertaintyIndex"]
