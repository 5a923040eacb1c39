"""The mean effect of an action in any state: mean Δ of its group, on the scale of `scale`."""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.types import UserError
from trainenv.worldmodel.baselines.groups import GroupMeans
from trainenv.worldmodel.baselines.points import FittedPoints, held_out, offsets
from trainenv.worldmodel.baselines.risk import Rates
from trainenv.worldmodel.baselines.scale import outcomes
from trainenv.worldmodel.examples import Examples


@dataclass(frozen=True, kw_only=True)
class MeanByAction:
    """A baseline of the mean Δ of each group of actions.

    Args:
        weight: Number of branches that the mean which a group is shrunk to counts for; above 0.

    Raises:
        UserError: the weight is not above 0.
    """

    weight: float = 5.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(
                f"weight must be above 0, found {self.weight!r}; 5 counts as five branches"
            )

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`."""
        spread = offsets(examples, held_out(self._means, examples), centred=False)
        return FittedPoints(points=self._means(examples), offsets=spread, risks=Rates.of(examples))

    def _means(self, examples: Examples) -> GroupMeans:
        return GroupMeans.of(examples, outcomes(examples), weight=self.weight)
