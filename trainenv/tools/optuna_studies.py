"""Studies of Optuna that print nothing, and the results that they are told.

Optuna fails with a warning at `tell(nan)` and takes `tell(inf)` for a result. Here a non-finite
score fails the trial, and the sampler learns nothing from it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

Sampler = Literal["tpe", "gp"]


def quiet_study(sampler: Sampler, startup: int, seed: int) -> Study:
    """Return a study in memory that minimises and prints nothing.

    Optuna's log level is the same afterwards as before.
    """
    import optuna

    kind: Callable[..., Any] = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}[
        sampler
    ]
    options: dict[str, Any] = {"multivariate": True} if sampler == "tpe" else {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            # Before Optuna 5, of `multivariate` and of the Gaussian process.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            drawing = kind(seed=seed, n_startup_trials=startup, **options)
        return optuna.create_study(sampler=drawing, direction="minimize")
    finally:
        optuna.logging.set_verbosity(before)


def tell(study: Study, trial: Trial, found: float) -> None:
    """Tell a study the score of a trial; a non-finite score fails the trial."""
    from optuna.trial import TrialState

    if math.isfinite(found):
        study.tell(trial, found)
    else:
        study.tell(trial, state=TrialState.FAIL)
