"""The scale on which Δ is learned: asinh(Δ ÷ 0.02), linear for small effects, else logarithmic.

Most interventions change ln loss by about 0.01, and a divergence by 1. On the scale of Δ itself,
divergences would dominate least squares. A monotone scale keeps medians and quantiles.
"""

from __future__ import annotations

import numpy as np

from trainenv.worldmodel.evaluation.noise import truths
from trainenv.worldmodel.examples import Examples, Flags, Floats

UNIT = 0.02  # ln loss; the scale is linear below it


def squash(delta: Floats) -> Floats:
    """Convert Δ ln loss to the scale."""
    squashed: Floats = np.arcsinh(delta / UNIT)
    return squashed


def unsquash(squashed: Floats) -> Floats:
    """Convert from the scale to Δ ln loss."""
    delta: Floats = UNIT * np.sinh(squashed)
    return delta


def acts(examples: Examples) -> Flags:
    """Return a mask [n] of the branches that do something at any decision."""
    done: Flags = (examples.actions != 0).any(axis=(1, 2))
    return done


def outcomes(examples: Examples) -> Floats:
    """Return the outcomes of candidates on the scale, [n, 3]: horizon, annealed, final.

    It is NaN for controls and where Δ was not measured.
    """
    return np.where(examples.candidate[:, None], squash(truths(examples)), np.nan)
