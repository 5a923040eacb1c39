"""Ridge regression (Hoerl & Kennard 1970) on state, actions, and the products of the two.

    w = argmin ‖y − Xw‖² + λ‖w‖²,     λ by the squared error on held-out trunks

X holds the standardised state s, the actions of each decision, their summary m, the law's Δ, and
all m_i·s_j and m_i·law_j: what an action does may depend on the state. m is scaled but not centred,
so that a product is 0 where nothing is done. y holds each target on the scale of `scale`; and, for
all branches, whether one diverged, whether the index fired and how long it took to recover. Solved
in closed form, by the eigenvectors of XᵀX or of XXᵀ, whichever is smaller, for all λ at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.baselines import inputs
from trainenv.worldmodel.baselines.folds import folds
from trainenv.worldmodel.baselines.points import FittedPoints, offsets
from trainenv.worldmodel.baselines.risk import Risk, hazards, recovery_times, shares
from trainenv.worldmodel.baselines.scale import outcomes
from trainenv.worldmodel.examples import LEVELS, TARGETS, Examples, Flags, Floats
from trainenv.worldmodel.features import DECISIONS

_FURTHEST = 4.0  # standard deviations: a line goes on for ever, what it was fitted to does not


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Linear, with its penalty chosen on held-out trunks, for each target its own.

    Args:
        penalties: λ to choose from, above 0.
        interactions: whether products of actions and state are among the inputs.

    Raises:
        UserError: there is no penalty, or one that is not above 0.
    """

    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    interactions: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalties", tuple(self.penalties))
        if not self.penalties or not min(self.penalties) > 0:
            raise UserError(
                f"penalties must be numbers above 0, at least one, found {self.penalties}"
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
            points=lambda those: linear(those)[:, :targets],
            offsets=offsets(examples, np.stack(out[:targets], axis=1), centred=False),
            risks=LinearRisks(linear=linear, shares=shares(examples), late=late),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """How inputs become columns: means and scales of the examples that were learned from.

    Attributes:
        centre, scale: of the state, [F]; a scale of 0 leaves a feature out.
        action_scale: [M] of the summary; decision_scale: [4·A] of each decision; law_scale: [3].
    """

    centre: Floats
    scale: Floats
    action_scale: Floats
    decision_scale: Floats
    law_scale: Floats
    interactions: bool

    @classmethod
    def of(cls, examples: Examples, *, interactions: bool) -> Design:
        """Take means and scales; what is not measured counts as the mean."""
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
        """[n, D] the columns of some branches."""
        state = _over(inputs.states(examples) - self.centre, self.scale)
        state = np.clip(np.nan_to_num(state, nan=0.0), -_FURTHEST, _FURTHEST)
        main = _over(inputs.main_actions(examples), self.action_scale)
        law = _over(inputs.law(examples), self.law_scale)
        columns = [state, _over(inputs.decisions(examples), self.decision_scale), main, law]
        if self.interactions:
            columns.append(
                (main[:, :, None] * np.concatenate([state, law], axis=1)[:, None, :]).reshape(
                    len(main), -1
                )
            )
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """y = offset + (x − centre)·weights."""

    offset: float
    centre: Floats
    weights: Floats

    def __call__(self, x: Floats) -> Floats:
        at: Floats = self.offset + (x - self.centre) @ self.weights
        return at


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A line an output, over the same columns."""

    design: Design
    lines: Sequence[Line]

    def __call__(self, examples: Examples) -> Floats:
        """[n, outputs]."""
        x = self.design(examples)
        return np.stack([line(x) for line in self.lines], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRisks:
    """The last three outputs, cut to what they can be: chances in [0, 1], decisions in [0, 4].

    Attributes:
        shares: [4] of the divergences, by decision.
        late: [5] quantiles of what the line of recovery was off by on held-out trunks.
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
    """The line with the best penalty, and [n] what it says of each branch when its trunk is held out; NaN in `y` is left out."""
    known = ~np.isnan(y)
    told = np.full((len(penalties), len(y)), np.nan)  # by penalty, of held-out trunks
    for out in masks:
        for row, line in enumerate(_lines(x[known & ~out], y[known & ~out], penalties)):
            told[row, out] = line(x[out])
    missed = (
        np.nanmean(np.where(known, told - y, np.nan) ** 2, axis=1)
        if known.any()
        else np.zeros(len(penalties))
    )
    best = int(np.argmin(missed))
    return _lines(x[known], y[known], penalties[best : best + 1])[0], told[best]


def _lines(x: Floats, y: Floats, penalties: Sequence[float]) -> list[Line]:
    """A line a penalty. Of nothing, 0."""
    if not len(y):
        return [
            Line(offset=0.0, centre=np.zeros(x.shape[1]), weights=np.zeros(x.shape[1]))
            for _ in penalties
        ]
    centre = x.mean(axis=0)
    offset = float(y.mean())
    x = x - centre
    y = y - offset
    wide = len(x) < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    inner = vectors.T @ (y if wide else x.T @ y)
    found = []
    for penalty in penalties:
        solved = vectors @ (inner / (np.maximum(values, 0.0) + penalty))
        found.append(Line(offset=offset, centre=centre, weights=x.T @ solved if wide else solved))
    return found


def _root_mean_square(columns: Floats) -> Floats:
    scale: Floats = np.sqrt(np.mean(columns**2, axis=0))
    return scale


def _over(columns: Floats, scale: Floats) -> Floats:
    """Columns over their scale; 0 where it is 0."""
    return np.divide(
        columns, scale, out=np.zeros_like(columns), where=np.broadcast_to(scale > 0, columns.shape)
    )
