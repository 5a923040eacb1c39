"""An environment in which a world model imagines a training run.

It has the spaces of `TrainingEnv`, takes thousands of decisions a second, and trains nothing.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import TrainingConfig
from trainenv.envs.imagined_run import Imagined, Root
from trainenv.envs.spaces import Observation, SteeredEnv, episode_over, no_run
from trainenv.interventions import ActionVector, after
from trainenv.types import DECISIONS, Inference, Intervention, RunHistory, UserError, WorldModel

Divergence = Literal["sampled", "expected"]
_LEAST = 1e-300  # smallest loss, nats: the quotient of smaller ones could be NaN


class Step(NamedTuple):
    """The result of a decision.

    Attributes:
        after: Run after the decision.
        latent: State of the model for that run, [W].
        reward: Fall of ln(validation loss) less `charges`, nats. If `reach` has ended the episode,
            the further fall that the model expects is added.
        charges: Amount that was taken off the reward, nats.
        diverged: True if the run diverged.
        ended: True if the budget is spent, or `reach` decisions were taken.
        masked: Names of the parts of the action that were illegal and left out.
    """

    after: Imagined
    latent: NDArray[np.float32]
    reward: float
    charges: float
    diverged: bool
    ended: bool
    masked: tuple[str, ...]

    @property
    def info(self) -> dict[str, Any]:
        """The `info` of `step`: as in `TrainingEnv`, without FLOPs and alarms."""
        return {
            "step": self.after.step,
            "validation_loss": self.after.validation,
            "masked": list(self.masked),
            "charges": self.charges,
        }


class WorldModelEnv(SteeredEnv):
    """Steer a training run that a world model imagines, from the history of a real run.

    **Action** — `MultiDiscrete([4, 3, 5, 2, 2, 2])`, as in `TrainingEnv`. Parts that
    `action_masks()` forbids are left out and named in `info["masked"]`.

    **Observation** — `Box(-10, 10, (32,), float32)`, see `Features`. It is the real observation of
    the root, with some features updated:

    - `progress`, `budget_left`, `lr`, `lr_scale`, `weight_decay_scale`, `clip_*`, `reset_recency`
      and `flagged` follow from schedule and interventions;
    - `validation` and `validation_fall` follow from the rewards of the model.

    **All other features stay as they were at the root**: the model does not forecast them.
    `flagged` stays until the data are skipped. A warm-up that a clip policy starts is not foreseen.

    **Reward** — float, the fall in ln(validation loss) over the decision that the model expects,
    less the charges of `TrainingEnv`: `instability_charge` × a quarter of the chance that the
    uncertainty index fires within four decisions, if the model is asked for risks (see below).
    There is no charge for compute, since no FLOPs are spent.

    **Termination** — the run diverged: the validation loss passed `divergence_loss` × ln V, or,
    with `divergence="sampled"`, a random number was below the hazard of the model. The model
    forecasts hazards of the first four decisions; later decisions have none. The reward of the
    model already includes divergence, since its data count the loss of a diverged run as that of a
    uniform guess. With sampling, a divergence therefore falls to that loss, and the reward without
    one is set so that the mean of both is the reward of the model. With `divergence="expected"`
    nothing is sampled and no risks are asked for: the reward is that of the model, and decisions
    are several times as fast.

    **Truncation** — the budget is spent, or `reach` decisions were taken, if it is given. Then the
    value of the state is added to the last reward: the further fall until the end of the run that
    the model expects. The shipped model has learned from four decisions at a time. On runs without
    interventions its error of the whole fall was 0.03 nats with `reach=4`, and 0.11 nats decision
    by decision until the end (`benchmarks/sb3.py`).

    **Reset** — a root drawn from the histories, or `options={"root": number}`.

    Args:
        model: World model. Its action vectors must be those of `config.interventions`.
        histories: Histories that episodes start from. Decisions have the length that they have
            there.
        config: Configuration of the runs in the histories: action space, charges, warm-ups.
        divergence: `"sampled"` to draw divergences, `"expected"` to leave them in the reward.
        reach: Largest number of decisions of an episode; None for the whole budget.
        render_mode: `ansi`, `rgb_array` or None, see `SteeredEnv`.

    Attributes:
        roots: One root for each history, in the same order.
        futures: Number of model evaluations so far: states of inferences plus entries of forecasts.

    Raises:
        UserError: There are no histories, the model cannot read one, or a setting is out of range.
    """

    def __init__(
        self,
        model: WorldModel,
        histories: Sequence[RunHistory],
        config: TrainingConfig,
        *,
        divergence: Divergence = "sampled",
        reach: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(config.interventions, config.environment, render_mode)
        if divergence not in get_args(Divergence):
            raise UserError(
                f"divergence must be one of {', '.join(get_args(Divergence))}, found {divergence!r}"
            )
        if reach is not None and reach < 1:
            raise UserError(
                f"reach must be at least 1, or None for the whole budget, found {reach!r}"
            )
        if not histories:
            raise UserError(
                "imagined episodes need histories to start from, found none; "
                "make some with record_histories"
            )
        self.model = model
        self.divergence = divergence
        self.reach = reach
        self.roots = tuple(Root.of(history, config) for history in histories)
        self._latents = model.initial_inference(histories).latent
        self.futures = len(histories)
        self._current: Imagined | None = None
        self._latent = self._latents[0]

    @property
    def state(self) -> Imagined:
        """The run now, a value. It exists after the first `reset`."""
        if self._current is None:
            raise no_run()
        return self._current

    @property
    def steered(self) -> Imagined:
        return self.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if unknown := set(options or {}) - {"root"}:
            raise UserError(
                f"reset knows the option 'root', found {', '.join(sorted(unknown))}; leave it out"
            )
        number = (options or {}).get("root")
        if number is None:
            number = int(self.np_random.integers(len(self.roots)))
        self._current, self._latent = self.start(number)
        info = {
            "step": self.state.step,
            "validation_loss": self.state.validation,
            "masked": list[str](),
        }
        return self.state.observation, self._noted(info, fresh=True)

    def step(self, action: ActionVector) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self.state.over:
            raise episode_over()
        (done,) = self.imagine([self.state], self._latent[None], [action], self.np_random)
        self._current = done.after
        self._latent = done.latent
        info = self._noted(done.info)
        return done.after.observation, done.reward, done.diverged, done.ended, info

    def fork(self) -> WorldModelEnv:
        """Return an independent environment in the same state."""
        fork = copy.copy(self)
        fork._losses = list(self._losses)
        fork._np_random = copy.deepcopy(self._np_random)
        return fork

    # ── many at once ──────────────────────────────────────────────────────────────────────────────

    def start(self, number: int) -> tuple[Imagined, NDArray[np.float32]]:
        """Return a run at the root with a number, and the state of the model for it, [W]."""
        if not isinstance(number, int | np.integer) or number not in range(len(self.roots)):
            raise UserError(
                f"root must be a whole number from 0 to {len(self.roots) - 1}, found {number!r}"
            )
        return self.roots[number].start(), self._latents[number]

    def imagine(
        self,
        states: Sequence[Imagined],
        latents: NDArray[np.float32],
        actions: Sequence[ActionVector],
        generator: np.random.Generator,
    ) -> list[Step]:
        """Take one decision in each of B episodes, in one call of the model.

        The episode of the environment itself is not changed.

        Args:
            states: B runs that are not over.
            latents: State of the model for each run, [B, W].
            actions: B action vectors.
            generator: Generator that divergences are drawn from, one number for each episode.
        """
        legal = [self.codec.legal(action, state) for action, state in zip(actions, states)]
        vectors = np.array([self.codec.encode(intervention) for intervention, _ in legal])
        inference = self.model.recurrent_inference(latents, vectors)
        self.futures += len(vectors)
        after = [_applied(state, intervention) for state, (intervention, _) in zip(states, legal)]
        risks = self._risks(after)
        draws = generator.random(len(after))
        return [
            self._step_of(run, inference, place, risks[place], float(draws[place]), masked)
            for place, (run, (_, masked)) in enumerate(zip(after, legal))
        ]

    def _step_of(
        self,
        run: Imagined,
        inference: Inference,
        place: int,
        risk: _Risk,
        draw: float,
        masked: tuple[str, ...],
    ) -> Step:
        """Return the result of a decision.

        Args:
            run: Run with the intervention of the decision in force.
            inference: Inference of the model for all runs.
            place: Place of the run in the inference.
            risk: Risks of the decision.
            draw: Random number from 0 to 1; the run diverges if it is below the hazard.
            masked: Names of the parts of the action that were left out.
        """
        fall = float(inference.reward[place])
        uniform = run.root.history.uniform_loss
        if not math.isfinite(fall):
            raise UserError(
                f"expected finite rewards of the model, found {fall}; build or load the model anew"
            )
        # The fall of a divergence: 0 or less.
        lost = math.log(run.validation / max(uniform, run.validation))
        drawn = draw < risk.hazard
        if drawn:
            fall = lost
        elif risk.hazard < 1:
            fall = (fall - risk.hazard * lost) / (1 - risk.hazard)
        cap = max(self.environment.divergence_loss * uniform, run.validation)
        validation = cap  # a loss above the cap is the cap, equal to the bit
        if fall > math.log(run.validation / cap):
            validation = max(run.validation * math.exp(-fall), _LEAST)
        fall = math.log(run.validation / validation)
        diverged = drawn or not validation < cap
        spent = run.step >= run.root.horizon.end
        reached = self.reach is not None and len(run.taken) >= self.reach
        ended = (spent or reached) and not diverged
        further = 0.0
        if ended and not spent:
            further = float(inference.value[place])
        charges = self.environment.instability_charge * risk.alarms
        after = replace(run, validation=validation, fall=fall, over=diverged or ended)
        return Step(
            after=after,
            latent=inference.latent[place],
            reward=fall + further - charges,
            charges=charges,
            diverged=diverged,
            ended=ended,
            masked=masked,
        )

    def _risks(self, runs: Sequence[Imagined]) -> list[_Risk]:
        """Return the risks of the last decision of each run.

        Runs of one root are forecast in one call.
        """
        risks = [_NO_RISK] * len(runs)
        if self.divergence == "expected":
            return risks
        by_root: dict[int, list[int]] = defaultdict(list)
        for place, run in enumerate(runs):
            if len(run.taken) <= DECISIONS:
                by_root[id(run.root)].append(place)
        for places in by_root.values():
            forecasts = self.model.forecast(
                runs[places[0]].root.history, [runs[place].taken for place in places]
            )
            self.futures += len(forecasts)
            for place, forecast in zip(places, forecasts):
                hazard = forecast.hazard[len(runs[place].taken) - 1]
                risks[place] = _Risk(float(hazard), forecast.instability / DECISIONS)
        return risks


@dataclass(frozen=True)
class _Risk:
    """The risks of a decision.

    Attributes:
        hazard: Probability that the run diverges in the decision, 0 to 1.
        alarms: Expected number of times that the uncertainty index fires.
    """

    hazard: float
    alarms: float


_NO_RISK = _Risk(0.0, 0.0)


def _applied(run: Imagined, intervention: Intervention) -> Imagined:
    """Return the run after the intervention and its decision's steps; its loss is unchanged."""
    factors = after(run, intervention)
    return replace(
        run,
        taken=(*run.taken, intervention),
        lr_scale=factors.lr_scale,
        weight_decay_scale=factors.weight_decay_scale,
        clip=factors.clip,
        flagged_ahead=factors.flagged_ahead,
        reset_at=run.step if intervention.momentum_reset else run.reset_at,
    )
