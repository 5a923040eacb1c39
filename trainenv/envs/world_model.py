"""A training run as a world model imagines it: the spaces of `TrainingEnv`, thousands of decisions a second, no training."""

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
_LEAST = 1e-300  # a loss: below it a quotient of losses is no number


class Step(NamedTuple):
    """What a decision has led to.

    Attributes:
        after: the run then.
        latent: [W] the model's state of it.
        reward: fall of ln(validation loss), and where `reach` has ended it the further fall
            expected, less `charges`, nats.
        diverged, ended: the run diverged; its budget is spent.
        masked: parts of the action that were left out.
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
        """As `TrainingEnv` gives it, but for FLOPs, of which none are spent, and alarms, which nobody counts."""
        return {
            "step": self.after.step,
            "validation_loss": self.after.validation,
            "masked": list(self.masked),
            "charges": self.charges,
        }


class WorldModelEnv(SteeredEnv):
    """Steer a training run that a world model imagines from where a real one was.

    **Action** — `MultiDiscrete([4, 3, 5, 2, 2, 2])`, as in `TrainingEnv`: parts that `action_masks()` forbids are left out and
    named in `info["masked"]`.

    **Observation** — `Box(-10, 10, (32,), float32)`, see `Features`. The model's state is its own, so the observation is the
    real one of the root with these features moved on: `progress`, `budget_left`, `lr`, `lr_scale`, `weight_decay_scale`,
    `clip_*`, `reset_recency` and `flagged` as they follow from schedule and interventions, `validation` and `validation_fall`
    from the model's rewards. **All other features stay as they were at the root**: the model does not forecast them.
    `flagged` stays until it is skipped, and a warm-up that a clip policy asks for by itself is not foreseen.

    **Reward** — float, the fall in ln(validation loss) over the decision as the model expects it, less the charges of
    `TrainingEnv`: `instability_charge` × a quarter of the chance that the uncertainty index fires
    within four decisions, where the model is asked for risks (below). Nothing is spent elsewhere,
    so there is no charge for compute.

    **Termination** — the run diverged: the validation loss passed `divergence_loss` × ln V, or, with `divergence="sampled"`, a
    draw fell below the model's hazard. Hazards are told for four decisions from the root on; later decisions are not drawn for.
    The model's reward has divergence priced in (its data count a diverged run's loss as that of a uniform guess). So where a
    draw decides, divergence falls to that loss, and going on gets what makes the mean of both the model's reward. With
    `divergence="expected"` nothing is drawn and no risks are asked for: the reward is the model's, and decisions are taken
    several times as fast.

    **Truncation** — the budget is spent; or `reach` decisions are taken, where it is given. Then the model's value of the state,
    what it expects the loss to fall further until the end of the run, is added to the last reward. The shipped model has learned
    from four decisions at a time: of runs in which nothing was done it told the whole fall to 0.03 nats with `reach=4`, and to
    0.11 nats decision by decision until the end (`benchmarks/sb3.py`).

    **Reset** — a root drawn from the histories, or `options={"root": number}`.

    Args:
        model: what imagines. Its action vectors must be those of `config.interventions`.
        histories: where episodes start; their decisions are those of the episodes.
        config: of the runs that the histories are of: action space, charges, warm-ups.
        divergence: whether it is drawn or only priced in.
        reach: decisions of an episode, at most; None for as many as the budget has.

    Attributes:
        roots: where episodes start, in the order of the histories.
        futures: what the model has looked at so far: states of inferences and entries of forecasts.

    Raises:
        UserError: there are no histories, or the model cannot read one.
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
                "imagined episodes need histories to start from, found none; make some with record_histories"
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
        """The run now; a value. Exists after the first `reset`."""
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
            raise UserError(f"reset knows the option 'root', found {', '.join(sorted(unknown))}")
        number = (options or {}).get("root")
        self._current, self._latent = self.start(
            int(self.np_random.integers(len(self.roots))) if number is None else number
        )
        info = {
            "step": self.state.step,
            "validation_loss": self.state.validation,
            "masked": list[str](),
        }
        return self.state.observation, info

    def step(self, action: ActionVector) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self.state.over:
            raise episode_over()
        (done,) = self.imagine([self.state], self._latent[None], [action], self.np_random)
        self._current = done.after
        self._latent = done.latent
        return done.after.observation, done.reward, done.diverged, done.ended, done.info

    def fork(self) -> WorldModelEnv:
        """An independent environment in the same state."""
        fork = copy.copy(self)
        fork._np_random = copy.deepcopy(self._np_random)
        return fork

    # ── many at once ──────────────────────────────────────────────────────────────────────────────

    def start(self, number: int) -> tuple[Imagined, NDArray[np.float32]]:
        """An episode at the root of that number, and the model's state of it."""
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
        """A decision in each of B episodes, in one call of the model; the environment's own episode is left as it is.

        Args:
            states: B runs that are not over.
            latents: [B, W] the model's state of each.
            actions: B action vectors.
            generator: divergences are drawn from it, one number an episode.
        """
        legal = [self.codec.legal(action, state) for action, state in zip(actions, states)]
        vectors = np.array([self.codec.encode(intervention) for intervention, _ in legal])
        said = self.model.recurrent_inference(latents, vectors)
        self.futures += len(vectors)
        after = [_applied(state, intervention) for state, (intervention, _) in zip(states, legal)]
        risks = self._risks(after)
        draws = generator.random(len(after))
        return [
            self._judged(run, said, place, risks[place], float(draws[place]), masked)
            for place, (run, (_, masked)) in enumerate(zip(after, legal))
        ]

    def _judged(
        self,
        run: Imagined,
        said: Inference,
        place: int,
        risk: _Risk,
        draw: float,
        masked: tuple[str, ...],
    ) -> Step:
        """A decision of the run at `place` in what the model says."""
        fall = float(said.reward[place])
        uniform = run.root.history.uniform_loss
        if not math.isfinite(fall):
            raise UserError(
                f"expected finite rewards of the model, found {fall}; build or load the model anew"
            )
        lost = math.log(
            run.validation / max(uniform, run.validation)
        )  # what a divergence falls by: 0 or less
        drawn = draw < risk.hazard
        if drawn:
            fall = lost
        elif risk.hazard < 1:
            fall = (fall - risk.hazard * lost) / (1 - risk.hazard)
        cap = max(self.environment.divergence_loss * uniform, run.validation)
        # Where the loss passes the cap it is the cap, to the bit.
        validation = (
            max(run.validation * math.exp(-fall), _LEAST)
            if fall > math.log(run.validation / cap)
            else cap
        )
        fall = math.log(run.validation / validation)
        diverged = drawn or not validation < cap
        spent = run.step >= run.root.horizon.end
        reached = self.reach is not None and len(run.taken) >= self.reach
        ended = (spent or reached) and not diverged
        further = float(said.value[place]) if ended and not spent else 0.0
        charges = self.environment.instability_charge * risk.alarms
        after = replace(run, validation=validation, fall=fall, over=diverged or ended)
        return Step(
            after, said.latent[place], fall + further - charges, charges, diverged, ended, masked
        )

    def _risks(self, runs: Sequence[Imagined]) -> list[_Risk]:
        """Of the decision that each run has just taken.

        Those of one root are asked for in one call.
        """
        risks = [_NO_RISK] * len(runs)
        if self.divergence == "expected":
            return risks
        by_root: dict[int, list[int]] = defaultdict(list)
        for place, run in enumerate(runs):
            if len(run.taken) <= DECISIONS:
                by_root[id(run.root)].append(place)
        for places in by_root.values():
            told = self.model.forecast(
                runs[places[0]].root.history, [runs[place].taken for place in places]
            )
            self.futures += len(told)
            for place, forecast in zip(places, told):
                hazard = forecast.hazard[len(runs[place].taken) - 1]
                risks[place] = _Risk(float(hazard), forecast.instability / DECISIONS)
        return risks


@dataclass(frozen=True)
class _Risk:
    """Of a decision: the chance of divergence, and the expected number of alarms."""

    hazard: float
    alarms: float


_NO_RISK = _Risk(0.0, 0.0)


def _applied(run: Imagined, intervention: Intervention) -> Imagined:
    """The run once the intervention is in force and its decision's steps are done, its loss still as before."""
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
