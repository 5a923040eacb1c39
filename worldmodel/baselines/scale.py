"""The scale on which Δ's are learned: asinh(Δ ÷ 0.02), linear for small effects and logarithmic for large ones.

Most interventions move ln loss by a hundredth, and a branch that diverges by 1: on the scale of Δ
itself, least squares would see nothing but divergence. Medians and quantiles pass through a
monotone scale unchanged.
"""

from __future__ import annotations

import numpy as np

from trainenv.worldmodel.evaluation.noise import truths
from trainenv.worldmodel.examples import Examples, Flags, Floats

UNIT = 0.02  # of ln loss


def squash(delta: Floats) -> Floats:
    """Onto the scale."""
    squashed: Floats = np.arcsinh(delta / UNIT)
    return squashed


def unsquash(squashed: Floats) -> Floats:
    """Back from it."""
    delta: Floats = UNIT * np.sinh(squashed)
    return delta


def acts(examples: Examples) -> Flags:
    """[n] whether anything is done at any decision."""
    done: Flags = (examples.actions != 0).any(axis=(1, 2))
    return done


def outcomes(examples: Examples) -> Floats:
    """[n, 3] on the scale, of horizon, annealed and final; NaN where nothing is to be learned: no candidate, not measured."""
    return np.where(examples.candidate[:, None], squash(truths(examples)), np.nan)
