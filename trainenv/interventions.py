"""Codec between an `Intervention` and its action vector, with bounds and masks.

An action is a vector of six small integers, by default of the space
`MultiDiscrete([4, 3, 5, 2, 2, 2])`. All zeros leaves the run alone. With
`interventions.allow_emphasis` it has a seventh.

| part | values by default |
|---|---|
| 0 learning rate | ×1, ×0.8, ×0.9, ×1.1 |
| 1 weight decay | ×1, ×0.5, ×2 |
| 2 clip policy | keep, none, zclip, arc, spam |
| 3 momentum reset | no, yes |
| 4 data reorder | no, yes |
| 5 skip batch | no, yes |
| 6 emphasis of the objective, if allowed | keep, less, more |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import InterventionConfig
from trainenv.types import EMPHASES, InForce, Intervention, UserError

PARTS = (
    "lr_scale",
    "weight_decay_scale",
    "clip",
    "momentum_reset",
    "data_reorder",
    "skip_batch",
    "emphasis",
)
"""Parts of an action; the last is in the action space only if the configuration allows it."""

ActionVector = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class ActionCodec:
    """Codec for one configuration of the action space.

    Args:
        config: Values of each part, their bounds, and the parts that are allowed.
    """

    config: InterventionConfig = field(default_factory=InterventionConfig)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each part; the `nvec` of the Gymnasium space."""
        emphasis = (1 + len(EMPHASES),) * self.config.allow_emphasis
        return (
            len(self.config.lr_scales),
            len(self.config.weight_decay_scales),
            1 + len(self.config.clips),
            2,
            2,
            2,
            *emphasis,
        )

    def decode(self, action: ActionVector) -> Intervention:
        """Return the intervention of an action vector.

        Raises:
            UserError: The action is not one whole number a part, or one of them is out of range.
        """
        try:
            vector = np.asarray(action)
        except ValueError:  # ragged
            vector = np.array(None)
        whole = vector.dtype.kind in "iu" or (
            vector.dtype.kind == "f" and bool(np.all(vector == np.floor(vector)))
        )
        names = PARTS[: len(self.sizes)]
        if vector.shape != (len(names),) or not whole:
            raise UserError(
                f"an action is {len(names)} whole numbers ({', '.join(names)}), found {action!r}"
            )
        for name, value, size in zip(PARTS, vector.tolist(), self.sizes):
            if not 0 <= value < size:
                raise UserError(
                    f"the action's {name} must be from 0 to {size - 1}, "
                    f"found {value:g} in {vector.tolist()}"
                )
        lr, decay, clip, reset, reorder, skip, *emphasis = (int(v) for v in vector)
        return Intervention(
            lr_scale=self.config.lr_scales[lr],
            weight_decay_scale=self.config.weight_decay_scales[decay],
            clip=(None, *self.config.clips)[clip],
            momentum_reset=bool(reset),
            data_reorder=bool(reorder),
            skip_batch=bool(skip),
            emphasis=(None, *EMPHASES)[sum(emphasis)],
        )

    def encode(self, intervention: Intervention) -> NDArray[np.int64]:
        """Return the action vector of an intervention, int64 [parts].

        Raises:
            UserError: One of its values is not in this action space.
        """
        policies = (None, *self.config.clips)
        if intervention.clip not in policies:
            raise UserError(
                f"clip must be one of {', '.join(self.config.clips)} in this action space, found "
                f"{intervention.clip!r}; add it to interventions.clips"
            )
        emphasis: tuple[int, ...] = ()
        if self.config.allow_emphasis:
            emphasis = ((None, *EMPHASES).index(intervention.emphasis),)
        elif intervention.emphasis is not None:
            raise UserError(
                f"emphasis must be None in this action space, found {intervention.emphasis!r}; "
                "set interventions.allow_emphasis"
            )
        parts = (
            _place("lr_scale", intervention.lr_scale, self.config.lr_scales),
            _place(
                "weight_decay_scale",
                intervention.weight_decay_scale,
                self.config.weight_decay_scales,
            ),
            policies.index(intervention.clip),
            int(intervention.momentum_reset),
            int(intervention.data_reorder),
            int(intervention.skip_batch),
            *emphasis,
        )
        return np.array(parts, dtype=np.int64)

    def masks(self, run: InForce) -> tuple[NDArray[np.bool_], ...]:
        """Return the legal values of each part now: bool arrays of the lengths in `sizes`.

        A value is illegal if it would leave the bounds, if it would change nothing (the policy that
        is in force already, a skip where no data is flagged), or if the configuration does not
        allow it. The first value of each part changes nothing and is always legal.
        """
        config = self.config
        lr = [within(run.lr_scale * scale, config.lr_bounds) for scale in config.lr_scales]
        decay = [
            within(run.weight_decay_scale * scale, config.weight_decay_bounds)
            for scale in config.weight_decay_scales
        ]
        clip = [name != run.clip and (name != "spam" or config.allow_spam) for name in config.clips]
        skip = config.allow_skip_batch and bool(run.flagged_ahead)
        emphasis: list[list[bool]] = []
        if config.allow_emphasis:
            possible = getattr(run, "emphases", ())  # a run that is imagined has no objective
            emphasis = [[True, *(name in possible for name in EMPHASES)]]
        parts = (
            [True, *lr[1:]],
            [True, *decay[1:]],
            [True, *clip],
            [True, config.allow_momentum_reset],
            [True, config.allow_data_reorder],
            [True, skip],
            *emphasis,
        )
        return tuple(np.array(part, dtype=np.bool_) for part in parts)

    def legal(self, action: ActionVector, run: InForce) -> tuple[Intervention, tuple[str, ...]]:
        """Return the intervention without its illegal parts, and the names of those parts."""
        self.decode(action)
        vector = np.asarray(action).astype(np.int64)
        masked = [not mask[value] for mask, value in zip(self.masks(run), vector)]
        return self.decode(np.where(masked, 0, vector).tolist()), tuple(
            name for name, out in zip(PARTS, masked) if out
        )

    def all_legal(self, run: InForce) -> Iterator[Intervention]:
        """Yield every legal intervention; the first one changes nothing."""
        for action in product(*(np.flatnonzero(mask) for mask in self.masks(run))):
            yield self.decode([int(value) for value in action])


@dataclass(frozen=True)
class Factors:
    """Interventions in force, as far as the legal actions depend on them; see `InForce`."""

    lr_scale: float
    weight_decay_scale: float
    clip: str
    flagged_ahead: tuple[int, ...]
    emphases: tuple[str, ...] = ()


def after(in_force: InForce, *interventions: Intervention) -> Factors:
    """Return the factors and the clip policy in force after interventions.

    Args:
        in_force: Run, or any other state that interventions act on; it is left as it is.
        interventions: Interventions in their order.
    """
    factors = Factors(
        lr_scale=in_force.lr_scale,
        weight_decay_scale=in_force.weight_decay_scale,
        clip=in_force.clip,
        flagged_ahead=in_force.flagged_ahead,
        emphases=getattr(in_force, "emphases", ()),
    )
    for one in interventions:
        factors = Factors(
            lr_scale=factors.lr_scale * one.lr_scale,
            weight_decay_scale=factors.weight_decay_scale * one.weight_decay_scale,
            clip=one.clip or factors.clip,
            flagged_ahead=() if one.skip_batch else factors.flagged_ahead,
            emphases=factors.emphases,
        )
    return factors


def within(value: float, bounds: tuple[float, float]) -> bool:
    """Tell whether a factor is inside its bounds, up to the rounding of repeated products."""
    return bounds[0] * (1 - 1e-9) <= value <= bounds[1] * (1 + 1e-9)


def bounded(name: str, value: float, bounds: tuple[float, float]) -> float:
    """Return the value.

    Raises:
        UserError: It is out of its bounds.
    """
    if not within(value, bounds):
        raise UserError(
            f"{name} in force must stay within [{bounds[0]:g}, {bounds[1]:g}], "
            f"this intervention would make it {value:g}; "
            f"intervene less, or widen interventions.{name.removesuffix('_scale')}_bounds"
        )
    return value


def _place(name: str, value: float, values: tuple[float, ...]) -> int:
    for place, known in enumerate(values):
        if abs(known - value) <= 1e-9 * known:
            return place
    known_values = ", ".join(f"{known:g}" for known in values)
    raise UserError(f"{name} must be one of {known_values} in this action space, found {value:g}")
