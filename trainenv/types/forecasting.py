"""Nouns of the world model: forecasts, and the protocols of models that make and learn them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trainenv.types.errors import UserError
from trainenv.types.run import RunHistory
from trainenv.types.step import Intervention

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """Forecast of a number: its mean, its median and its 90 % interval from `low` to `high`."""

    mean: float
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Forecast of the world model for a history and an intervention. Never NaN.

    Δ ln loss is the natural logarithm of the clean validation loss less that of doing nothing:
    below 0 is better, −0.01 is about 1 % better. Doing nothing has 0 by definition.

    Attributes:
        horizon: Δ ln loss after N steps.
        annealed: Δ ln loss after a reference cool-down that starts there.
        final: Δ ln loss at the end of the run.
        hazard: Probability for each decision until N that the run diverges in it, if it has not
            before.
        divergence: Probability that the run diverges within N steps.
        instability: Probability that the uncertainty index fires within N steps.
        recovery: Steps until the validation loss is back at its best so far; N means N or more.
        disagreement: Standard deviation of the mean of `annealed` over the ensemble.
        abstain: True if the ensemble disagrees more than where its intervals were calibrated: do
            nothing, or try it for real.
    """

    horizon: Estimate
    annealed: Estimate
    final: Estimate
    hazard: tuple[float, ...]
    divergence: float
    instability: float
    recovery: Estimate
    disagreement: float
    abstain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PathValues:
    """Values of K paths of the learning rate to the end of the run, against holding the rate.

    Attributes:
        change: Expected Δ ln loss at the end of the run [K], in nats; below 0 is better.
        disagreement: Standard deviation of `change` over the ensemble [K], in nats.
        low: Lower bound of the 90 % interval of ln loss at the end of the run [K].
        high: Upper bound of it [K].
    """

    change: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Inference:
    """One step of a model that is searched, for B states at once, in float32.

    Attributes:
        latent: States [B, …], only to be passed to `recurrent_inference`.
        reward: Fall of ln loss over the decision just taken [B], in nats; 0 at a root.
        value: Further fall of ln loss until the end of the run [B], in nats.
        logits: Logits of the policy [B, L], those of each part of the action in turn, L = Σ sizes.
            The policy is the product of a softmax over each part.
    """

    latent: NDArray[np.float32]
    reward: NDArray[np.float32]
    value: NDArray[np.float32]
    logits: NDArray[np.float32]


DECISIONS = 4  # decisions in a horizon
LOOKS = 8  # evaluation points in a horizon


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Branch that was trained for real next to a do-nothing control on the same batches.

    Attributes:
        run: Name of the run; rollouts of one run share its fate.
        history: History of the run when the branch started.
        interventions: Interventions at each of up to four decisions.
        looks: Δ ln loss after each eighth of the horizon in nats, as far as it was trained; NaN if
            not measured.
        annealed: Δ ln loss after the reference cool-down; NaN if not measured.
        final: Δ ln loss at the end of the run; NaN if not measured.
        diverged: Decision in which the branch diverged; −1 if it did not.
        fired: True if the uncertainty index fired.

    Raises:
        UserError: There are too many interventions or looks, or nothing was measured.
    """

    run: str
    history: RunHistory = field(repr=False)
    interventions: tuple[Intervention, ...]
    looks: tuple[float, ...] = ()
    annealed: float = math.nan
    final: float = math.nan
    diverged: int = -1
    fired: bool = False

    def __post_init__(self) -> None:
        if len(self.interventions) > DECISIONS or len(self.looks) > LOOKS:
            raise UserError(
                f"a rollout has at most {DECISIONS} interventions and {LOOKS} looks, "
                f"found {len(self.interventions)} and {len(self.looks)}"
            )
        if not any(math.isfinite(value) for value in (*self.looks, self.annealed, self.final)):
            raise UserError(
                "a rollout needs a measured Δ, found none; leave out branches that failed before "
                "their first evaluation"
            )


class WorldModel(Protocol):
    """Model of the effect of interventions on training. Deterministic, and unchanged by calls."""

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        """Return one forecast for each entry, in order.

        An entry is an intervention now, or a sequence of one for each decision from now on, to the
        end of the run at most. A model may look at the first four of them alone.

        Raises:
            UserError: The history is too short or holds a non-finite number, or an entry is not an
                intervention.
        """
        ...

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        """Return the states of histories, as roots of a search."""
        ...

    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        """Return the states after an action in each of B states and the steps of a decision.

        Args:
            latent: States [B, …] of an earlier inference.
            actions: Action vectors [B, 6].
        """
        ...


@runtime_checkable
class PathModel(Protocol):
    """World model that values whole paths of the learning rate, many in one call.

    A model that cannot always do so has a flag `values_paths`; see `as_path_model`.
    """

    def path_values(self, history: RunHistory, paths: NDArray[np.float64], /) -> PathValues:
        """Value paths.

        Args:
            history: History of the run up to now.
            paths: ln of the factor on the rate now at each decision to come [K, L].
        """
        ...


def as_path_model(model: object) -> PathModel | None:
    """Return a model if it values paths of the learning rate; None otherwise."""
    if isinstance(model, PathModel) and getattr(model, "values_paths", True):
        return model
    return None


@runtime_checkable
class Learner(Protocol):
    """World model that learns from verified branches. `worldmodel.OnlineModel` is one."""

    @property
    def model(self) -> WorldModel:
        """Newest model."""
        ...

    def learn(self, rollouts: Sequence[Rollout], /) -> None:
        """Learn from rollouts, given in the order in which they were measured."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was learned, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Replace everything that was learned."""
        ...
