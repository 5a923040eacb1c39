"""The nouns of the world model: forecasts, and the protocols of models that make and learn them."""

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
    """A number that is forecast: its mean and median, and an interval that is to hold it in 90 of 100 cases."""

    mean: float
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the world model says of (history, intervention). Never NaN.

    Δ ln loss is the natural logarithm of the clean validation loss less that of doing nothing
    instead: below 0 is better, −0.01 is about 1 % better. Doing nothing has 0 by definition.

    Attributes:
        horizon: Δ ln loss at +N steps.
        annealed: Δ ln loss after a reference cool-down that starts there.
        final: Δ ln loss at the end of the run.
        hazard: for each decision until +N, the probability that the run diverges in it if it has
            not before.
        divergence: probability that the run diverges within N steps.
        instability: probability that the uncertainty index fires within N steps.
        recovery: steps until the validation loss is back at its best so far; N stands for N or
            more.
        disagreement: standard deviation of the mean of `annealed` over the ensemble.
        abstain: the ensemble disagrees more than where its intervals were calibrated: do nothing,
            or try it for real.
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


@dataclass(frozen=True, slots=True)
class Inference:
    """One step of a model that is searched, for B states at once; float32.

    Attributes:
        latent: [B, …] states, to be handed back to `recurrent_inference`; nobody else reads them.
        reward: [B] fall of ln loss over the decision just taken, nats; 0 at a root.
        value: [B] further fall of ln loss until the end of the run, nats.
        logits: [B, L] of the policy: those of each part of the action one after the other, L = Σ
            sizes. The policy is the product of a softmax over each part.
    """

    latent: NDArray[np.float32]
    reward: NDArray[np.float32]
    value: NDArray[np.float32]
    logits: NDArray[np.float32]


# of a horizon: decisions in it, and looks at the validation loss
DECISIONS = 4
LOOKS = 8


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A branch that was trained for real, beside a do-nothing control on the same batches.

    Attributes:
        run: a name; rollouts of one run share its fate.
        history: what was known when it started.
        interventions: what was done at each of up to four decisions.
        looks: Δ ln loss after each eighth of the horizon, in nats, as far as it was trained; NaN
            where not measured.
        annealed, final: Δ ln loss after the reference cool-down and at the end of the run; NaN
            where not measured.
        diverged: decision in which it diverged; −1 if it did not.
        fired: whether the uncertainty index fired.

    Raises:
        UserError: too many interventions or looks, or nothing that was measured.
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
                f"a rollout has at most {DECISIONS} interventions and {LOOKS} looks, found {len(self.interventions)} and "
                f"{len(self.looks)}"
            )
        if not any(math.isfinite(value) for value in (*self.looks, self.annealed, self.final)):
            raise UserError(
                "a rollout needs a Δ that was measured, found none; leave out what failed before its first look"
            )


class WorldModel(Protocol):
    """A model of what interventions do to training. Deterministic; calling it changes nothing."""

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        """One forecast an entry, in order.

        An entry is an intervention now, or one for each of up to four decisions from now on.

        Raises:
            UserError: the history is too short or holds a number that is not finite, or an entry is
                no intervention.
        """
        ...

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        """The states that histories are in, as roots of a search."""
        ...

    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        """What B states become when an action is taken in each and a decision's steps are trained.

        Args:
            latent: [B, …] of an earlier inference.
            actions: [B, 6] action vectors.
        """
        ...


@runtime_checkable
class Learner(Protocol):
    """A world model that learns from what was verified. `worldmodel.OnlineModel` is one."""

    @property
    def model(self) -> WorldModel:
        """The newest."""
        ...

    def learn(self, rollouts: Sequence[Rollout], /) -> None:
        """Take in rollouts, in the order they were measured."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that it has learned, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Know what another had learned, and nothing else."""
        ...
