"""Evaluation of forecasts of interventions, on trunks that the model has not seen.

    report = evaluate(test, model.predict(test), noise=seed_noise(examples)[rows])
    report["horizon"]["mattering"]["mae_in_noise"]        # {value, low, high, units, trunks}
    compare(test, one, other)["regret"]["final"]["annealed"]["mean"]["difference"]

A report has errors, ranking and intervals of each target, forecasts of divergence, and the regret
of decisions, all with bootstrap intervals over trunks. All functions are pure functions of
`Examples` and `Predictions`.
"""

from trainenv.worldmodel.evaluation.choices import Choice, choices
from trainenv.worldmodel.evaluation.noise import matters, seed_noise
from trainenv.worldmodel.evaluation.report import RISK_LIMIT, compare, evaluate

__all__ = ["RISK_LIMIT", "Choice", "choices", "compare", "evaluate", "matters", "seed_noise"]
