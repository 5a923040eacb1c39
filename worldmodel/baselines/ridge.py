"""Ridge regression (Hoerl & Kennard 1970) on states, actions and their products.

    w = argmin ‖y − Xw‖² + λ‖w‖²,     λ by the squared error on held-out trunks

X holds the standardised state s, the actions of each decision, their summary m, Δ by the law, and
all products m_i·s_j and m_i·law_j, because the effect of an action may depend on the state. m is
scaled but not centred, so that products are 0 where nothing is done.

y holds each target on the scale of `scale`, and for all branches the divergence, the firing of the
index and the recovery time. The solution is in closed form for all λ at once, from the eigenvectors
of the smaller one of XᵀX and XXᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainenv.types import DECISIONS, UserError
from trainenv.worldmodel.baselines import inputs
from trainenv.worldmodel.baselines.folds import folds
from trainenv.worldmodel.baselines.points import FittedPoints, offsets
from trainenv.worldmodel.baselines.risk import Risk, hazards, recovery_times, shares
from trainenv.worldmodel.baselines.scale import outcomes
from trainenv.worldmodel.examples import LEVELS, TARGETS, Examples, Flags, Floats

_FURTHEST = 4.0  # states are clipped to this number of standard deviations, the range of the fit


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """A linear baseline; the penalty of each target is chosen on held-out trunks.

    Args:
        penalties: Values of λ to choose from, above 0.
        interactions: True to include products of actions and state in the inputs.

    Raises:
        UserError: there is no penalty, or one that is not above 0.
    """

    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    interactions: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalties", tuple(self.penalties))
        if not self.penalties or not min(self.penalties) > 0:
            raise UserError(
                f"penalties must be numbers above 0, at least one, found {self.penalties}; "
                "1 to 1e5 is usual"
            )

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`."""
        masks = list(folds(examples))
        design = Design.of(examples, interactions=self.interactions)
        x = design(examples)
        risks = np.stack([examples.diverged >= 0, examples.fired, recovery_times(examples)], axis=1)
        y = np.concatenate([outcomes(examples), risks], axis=1)  # [n, 6]
        lines, out = zip(*(_line(x, column, masks, self.penalties) for column in y.T))
        targets = len(TARGETS)
        linear = Linear(design=design, lines=lines)
        late = np.quantile(y[:, -1] - out[-1], LEVELS)
        return FittedPoints(
            points=lambda some: linear(some)[:, :targets],
            offsets=offsets(examples, np.stack(out[:targets], axis=1), centred=False),
            risks=LinearRisks(linear=linear, shares=shares(examples), late=late),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """The columns X of branches, standardised by the training examples.

    Attributes:
        centre: [F] means of the state features.
        scale: [F] standard deviations of the state features; 0 leaves a feature out.
        action_scale: [M] root mean squares of the summaries of actions.
        decision_scale: [4·A] root mean squares of the actions of each decision.
        law_scale: [3] root mean squares of Δ by the law.
        interactions: True if products are among the columns.
    """

    centre: Floats
    scale: Floats
    action_scale: Floats
    decision_scale: Floats
    law_scale: Floats
    interactions: bool

    @classmethod
    def of(cls, examples: Examples, *, interactions: bool) -> Design:
        """Compute means and scales; values that were not measured are left out."""
        states = inputs.states(examples)
        known = ~np.isnan(states)
        count = np.maximum(known.sum(axis=0), 1)
        centre = np.where(known, states, 0.0).sum(axis=0) / count
        spread = np.sqrt((np.where(known, states - centre, 0.0) ** 2).sum(axis=0) / count)
        return cls(
            centre=centre,
            scale=np.where(spread > 1e-9 * np.maximum(1.0, np.abs(centre)), spread, 0.0),
            action_scale=_root_mean_square(inputs.main_actions(examples)),
            decision_scale=_root_mean_square(inputs.decisions(examples)),
            law_scale=_root_mean_square(inputs.law(examples)),
            interactions=interactions,
        )

    def __call__(self, examples: Examples) -> Floats:
        """Return the columns of branches, [n, D]; a value that was not measured is the mean."""
        state = _over(inputs.states(examples) - self.centre, self.scale)
        state = np.clip(np.nan_to_num(state, nan=0.0), -_FURTHEST, _FURTHEST)
        main = _over(inputs.main_actions(examples), self.action_scale)
        law = _over(inputs.law(examples), self.law_scale)
        columns = [state, _over(inputs.decisions(examples), self.decision_scale), main, law]
        if self.interactions:
            others = np.concatenate([state, law], axis=1)
            products = main[:, :, None] * others[:, None, :]
            columns.append(products.reshape(len(main), -1))
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """A fitted line y = offset + (x − centre)·weights."""

    offset: float
    centre: Floats
    weights: Floats

    def __call__(self, x: Floats) -> Floats:
        at: Floats = self.offset + (x - self.centre) @ self.weights
        return at


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """One line per output, over the same columns."""

    design: Design
    lines: Sequence[Line]

    def __call__(self, examples: Examples) -> Floats:
        """Return the outputs of branches, [n, outputs]."""
        x = self.design(examples)
        return np.stack([line(x) for line in self.lines], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRisks:
    """Risks from the last three outputs, clipped to probabilities and to 0 to 4 decisions.

    Attributes:
        linear: Fitted lines.
        shares: [4] share of the divergences in each decision.
        late: [5] quantiles of the errors of the recovery time on held-out trunks.
    """

    linear: Linear
    shares: Floats
    late: Floats

    def __call__(self, examples: Examples) -> Risk:
        """See `Risks`."""
        diverged, fired, recovery = self.linear(examples)[:, -3:].T
        return Risk(
            hazard=hazards(np.clip(diverged, 0.0, 1.0), self.shares),
            instability=np.clip(fired, 0.0, 1.0),
            recovery=np.clip(recovery[:, None] + self.late, 0.0, DECISIONS),
        )


def _line(
    x: Floats, y: Floats, masks: Sequence[Flags], penalties: Sequence[float]
) -> tuple[Line, Floats]:
    """Fit a line with the best penalty; branches with NaN in `y` are left out.

    Returns:
        The line, and [n] its forecasts for held-out trunks.
    """
    known = ~np.isnan(y)
    forecast = np.full((len(penalties), len(y)), np.nan)  # by penalty, for held-out trunks
    for out in masks:
        for row, line in enumerate(_lines(x[known & ~out], y[known & ~out], penalties)):
            forecast[row, out] = line(x[out])
    best = 0
    if known.any():
        errors = np.nanmean(np.where(known, forecast - y, np.nan) ** 2, axis=1)
        best = int(np.argmin(errors))
    return _lines(x[known], y[known], penalties[best : best + 1])[0], forecast[best]


def _lines(x: Floats, y: Floats, penalties: Sequence[float]) -> list[Line]:
    """Fit one line per penalty; without any branch the lines are 0."""
    if not len(y):
        zeros = np.zeros(x.shape[1])
        return [Line(offset=0.0, centre=zeros, weights=zeros) for _ in penalties]
    centre = x.mean(axis=0)
    offset = float(y.mean())
    x = x - centre
    y = y - offset
    if len(x) < x.shape[1]:
        weights = [x.T @ solved for solved in _solutions(x @ x.T, y, penalties)]
    else:
        weights = _solutions(x.T @ x, x.T @ y, penalties)
    return [Line(offset=offset, centre=centre, weights=one) for one in weights]


def _solutions(matrix: Floats, y: Floats, penalties: Sequence[float]) -> list[Floats]:
    """Solve (matrix + λ·I)·w = y for each penalty λ; the matrix is symmetric."""
    values, vectors = np.linalg.eigh(matrix)
    inner = vectors.T @ y
    return [vectors @ (inner / (np.maximum(values, 0.0) + penalty)) for penalty in penalties]


def _root_mean_square(columns: Floats) -> Floats:
    scale: Floats = np.sqrt(np.mean(columns**2, axis=0))
    return scale


def _over(columns: Floats, scale: Floats) -> Floats:
    """Divide columns by their scale; a column with scale 0 becomes 0."""
    return np.divide(
        columns, scale, out=np.zeros_like(columns), where=np.broadcast_to(scale > 0, columns.shape)
    )
