"""A training run as a law: thousands of decisions a second, the spaces of `TrainingEnv`, and an optimum that is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import EnvironmentConfig, InterventionConfig
from trainenv.envs.observation import FEATURES, Features
from trainenv.envs.spaces import Observation, SteeredEnv, episode_over, no_run, snapshot_among
from trainenv.envs.synthetic_law import EPOCH, REFERENCE, SCHEDULE, Law, State, World, best_path
from trainenv.interventions import ActionVector, after
from trainenv.training.compatibility import check_snapshot
from trainenv.training.data_order import DataOrder, flagged_with
from trainenv.training.schedules import Horizon
from trainenv.types import CLIP_NAMES, ClipName, Intervention, Snapshot, UserError, as_whole


class SyntheticEnv(SteeredEnv):
    """Steer a training run that follows the law of `trainenv.envs.synthetic_law`.

    **Action, observation, reward, termination, truncation and reset** are those of `TrainingEnv`: `MultiDiscrete([4, 3, 5, 2, 2,
    2])`, `Box(-10, 10, (32,), float32)` with 0 for the features that the law does not have (entropies, embedding, shortcut),
    the fall in ln(validation loss) less charges. No FLOPs are spent, so `info` has no "flops".

    **Spikes** belong to data: index i spikes where its draw is below the chance at the learning rate in force. That data is
    flagged; after a `rewind` it can be skipped, and the spike does not come back. A reorder moves it.

    Args:
        decisions: the budget.
        spikes: whether there are any. Without them an episode is deterministic given the seed, and
            `optimum` is exact.
        interventions: the action space.
        environment: charges and the divergence cap.
        law: the constants.
    """

    def __init__(
        self,
        decisions: int = 60,
        spikes: bool = True,
        interventions: InterventionConfig | None = None,
        environment: EnvironmentConfig | None = None,
        law: Law | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            interventions or InterventionConfig(), environment or EnvironmentConfig(), render_mode
        )
        self.decisions = decisions
        self.spikes = spikes
        self.law = law or Law()
        if decisions < 1:
            raise UserError(f"decisions must be 1 or more, found {decisions}")
        if self.environment.divergence_loss <= 1.2:
            raise UserError(
                f"divergence_loss must be above 1.2 here, found {self.environment.divergence_loss:g}"
            )
        self._seed = 0
        self._current: State | None = None

    @property
    def state(self) -> State:
        """The state now; a value. Exists after the first `reset`."""
        if self._current is None:
            raise no_run()
        return self._current

    @property
    def world(self) -> World:
        """What is hidden from the observation."""
        return World.of(self._seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        snapshot = snapshot_among(options)
        if snapshot is None:
            self._seed = int(self.np_random.integers(2**31))
            self._current = State(
                horizon=Horizon(end=self.decisions, since=min(SCHEDULE.warmup, self.decisions)),
                order=DataOrder(seed=self._seed, epoch_steps=EPOCH, block_steps=1),
                gained=self.law.start,
                validation=REFERENCE,
                validation_before=REFERENCE,
            )
        else:
            self.restore(snapshot)
        features = dict.fromkeys(FEATURES, 0.0) | self._situation(self.state)
        return Features(**features).vector(), self._info(False, ())

    def step(self, action: ActionVector) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        state = self.state
        cap = self.environment.divergence_loss * REFERENCE
        if state.over:
            raise episode_over()
        intervention, masked = self.codec.legal(action, state)
        state = self._applied(state, intervention)
        # what was left of the budget went elsewhere since the last decision
        idle = state.decision >= state.horizon.end
        r = self.world.base * state.schedule(state.decision) * state.lr_scale
        data = state.order.index(state.decision) % EPOCH
        spiked = self.spikes and not idle and self.world.draws[data] < self.law.chance(r)
        spike = self.world.sizes[data] * r if spiked else 0.0
        after = (
            replace(state, validation_before=state.validation)
            if idle
            else self._trained(state, r, spike)
        )
        terminated = not after.validation < cap
        after = replace(after, validation=min(after.validation, cap), owed=0.0)
        truncated = after.decision >= after.horizon.end and not terminated
        self._current = replace(after, over=terminated or truncated)
        charges = self.charges(events=int(spiked), share_elsewhere=state.owed)
        reward = math.log(after.validation_before / after.validation) - charges
        observation = self._observe(state, spike, r, self.world.noise[data])
        return (
            observation,
            reward,
            terminated,
            truncated,
            self._info(spiked, masked) | {"charges": charges},
        )

    @property
    def steered(self) -> State:
        return self.state

    def flag(self, data_indices: Iterable[int]) -> None:
        """Mark data indices as harmful, for `Intervention(skip_batch=True)`; `rewind` carries them over."""
        self._current = replace(self.state, flagged=flagged_with(self.state.flagged, data_indices))

    def spend(self, decisions: int) -> None:
        """Take `decisions` decisions' worth off the budget: the run ends, annealed, that much earlier. Charged with the next."""
        state = self.state
        decisions = as_whole(decisions, "decisions", least=0)
        horizon = state.horizon.spend(state.decision, decisions)
        self._current = replace(
            state, horizon=horizon, owed=state.owed + decisions / self.decisions
        )

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this episode, keeping the flagged data; the decisions since come off the budget."""
        before, (seed, back) = self.state, self._read(snapshot)
        if seed != self._seed or back.decision > before.decision:
            raise UserError(
                "a rewind goes back in its own episode: expected an earlier snapshot of it; use restore() for others"
            )
        self._current = back
        self.flag(before.flagged)
        self.spend(before.decision - back.decision + back.horizon.end - before.horizon.end)

    # ── the environment as a value ────────────────────────────────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """The whole state, as JSON values, for `restore` or `reset(options={"snapshot": …})`."""
        state = {f.name: getattr(self.state, f.name) for f in fields(State)}
        state |= {
            "horizon": asdict(state["horizon"]),
            "order": state["order"].state_dict(),
            "flagged": list(state["flagged"]),
        }
        step = self.state.decision * self.environment.decision_steps
        return Snapshot(step=step, tensors={}, state={"seed": self._seed, "synthetic": state})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, of this environment or of another synthetic one."""
        self._seed, self._current = self._read(snapshot)

    def fork(self) -> SyntheticEnv:
        """An independent environment in the same state."""
        return self._fork(self.spikes)

    def _fork(self, spikes: bool) -> SyntheticEnv:
        fork = SyntheticEnv(
            self.decisions, spikes, self.codec.config, self.environment, self.law, self.render_mode
        )
        fork._seed = self._seed
        fork._current = self.state
        fork._np_random = copy.deepcopy(self._np_random)
        return fork

    def _read(self, snapshot: Snapshot) -> tuple[int, State]:
        check_snapshot(snapshot)
        if "synthetic" not in snapshot.state:
            raise UserError(
                "expected a snapshot of a synthetic environment, found one of a training run; TrainingEnv takes it"
            )
        seed = int(snapshot.state["seed"])
        saved = snapshot.state["synthetic"]
        order = DataOrder(seed=seed, epoch_steps=EPOCH, block_steps=1).load_state_dict(
            saved["order"]
        )
        composed = {
            "horizon": Horizon(**saved["horizon"]),
            "order": order,
            "flagged": tuple(saved["flagged"]),
        }
        return seed, State(**(saved | composed))

    # ── the known optimum ─────────────────────────────────────────────────────────────────────────

    def optimum(self) -> tuple[float, list[Intervention]]:
        """The best return that is attainable from here on when no spike comes, and interventions that attain it.

        With `spikes=False`, and no excess left from before, it is exact, to rounding. The final
        loss falls with the final P, and

            P = const + Σ_k [gain(r_k) − ρ^(K−1−k)·(1 − ρ)·(k + 1)·hidden(r_k)] − Σ_k decay cost −
            Σ_k clip cost,

        less half a gain for each reset, so none is made; policy `none` costs nothing. The
        learning-rate and the weight decay multiplier enter different sums and are steered by
        different parts of the action, so each sum is maximised alone, by dynamic programming over
        every multiplier that can be reached (factors commute: a state is how often each was used).

        A law of your own must keep `reset_gain` ≤ 1 and no clip cost below that of `none`.

        With spikes it is an upper bound: the same actions meet the same r, and a spike only adds
            excess, slows gain and is
        charged (a reorder or a skip changes nothing but spikes). Takes about 0.1 s for 60
        decisions, and memory as decisions ^ (number of learning-rate factors).
        """
        return self._planned(toll=0.0, clip="none")

    def reference(self, toll: float = 4.0) -> list[Intervention]:
        """A good plan where there are spikes, not an optimal one: as `optimum`, with ZClip and `toll` progress lost a spike.

        It knows the hidden base learning rate but not which data spikes, and does not react to what
        happens.
        """
        return self._planned(toll=toll, clip="zclip")[1]

    def _planned(self, *, toll: float, clip: ClipName) -> tuple[float, list[Intervention]]:
        state = self.state
        law = self.law
        world = self.world
        config = self.codec.config
        first = state.decision
        steps = 0 if state.over else max(0, state.horizon.end - state.decision)

        def rate_value(k: int, scale: NDArray[np.float64]) -> NDArray[np.float64]:
            r = world.base * state.schedule(first + k) * scale
            still_hidden = law.memory ** (steps - 1 - k) * (1 - law.memory) * (first + k + 1)
            return law.gain(r) - still_hidden * law.hidden(r) - toll * law.chance(r)

        def decay_value(k: int, scale: NDArray[np.float64]) -> NDArray[np.float64]:
            return -law.decay_cost * state.schedule(first + k) * (np.log2(scale) - world.decay) ** 2

        rates = best_path(config.lr_scales, state.lr_scale, config.lr_bounds, steps, rate_value)
        decays = best_path(
            config.weight_decay_scales,
            state.weight_decay_scale,
            config.weight_decay_bounds,
            steps,
            decay_value,
        )
        plan = [
            Intervention(lr_scale=rate, weight_decay_scale=decay)
            for rate, decay in zip(rates, decays)
        ]
        if plan and state.clip != clip:
            plan[0] = replace(plan[0], clip=clip)
        calm = self._fork(spikes=False)
        calm._current = replace(state, excess=0.0, owed=0.0)
        gained = [calm.step(self.codec.encode(intervention))[1] for intervention in plan]
        return sum(gained, 0.0), plan

    # ── one decision ──────────────────────────────────────────────────────────────────────────────

    def _applied(self, state: State, intervention: Intervention) -> State:
        order = state.order.reorder(state.decision) if intervention.data_reorder else state.order
        if intervention.skip_batch:
            order = order.skip(order.ahead(state.decision, state.flagged))
        factors = after(state, intervention)
        return replace(
            state,
            lr_scale=factors.lr_scale,
            weight_decay_scale=factors.weight_decay_scale,
            clip=factors.clip,
            reset_at=state.decision if intervention.momentum_reset else state.reset_at,
            order=order,
        )

    def _trained(self, state: State, r: float, spike: float) -> State:
        """The state after a decision at learning rate `r` that met a spike of `spike` nats (0: none)."""
        law = self.law
        place = CLIP_NAMES.index(state.clip)
        reset = state.reset_at == state.decision
        excess = (
            state.excess * (law.recovery_reset if reset else law.recovery)
            + spike * law.damping[place]
        )
        off = math.log2(state.weight_decay_scale) - self.world.decay
        costs = law.decay_cost * state.schedule(state.decision) * off * off + law.clip_cost[place]
        gained = (
            state.gained
            + law.gain(r) * (law.reset_gain if reset else 1.0) / (1 + law.stall * excess)
            - costs
        )
        hidden = law.memory * state.hidden + (1 - law.memory) * (state.decision + 1) * law.hidden(r)
        index = state.order.index(state.decision)
        return replace(
            state,
            decision=state.decision + 1,
            flagged=tuple(sorted({*state.flagged, index})) if spike else state.flagged,
            gained=gained,
            hidden=hidden,
            excess=excess,
            validation=law.loss(gained - hidden) + excess,
            validation_before=state.validation,
            gradient=(1 + 4 * excess) * math.exp(0.05 * self.world.noise[index % EPOCH]),
        )

    def _situation(self, state: State) -> dict[str, float]:
        return {
            "budget_left": max(0.0, 1 - state.decision / max(1, state.horizon.end)),
            "validation": math.log(state.validation / REFERENCE),
            "validation_fall": 10 * math.log(state.validation_before / state.validation),
            "flagged": float(bool(state.flagged_ahead)),
        }

    def _observe(self, before: State, spike: float, r: float, noise: float) -> Observation:
        """What a monitor would see of the decision since `before`.

        The batch that spikes has a high loss of its own.
        """
        now = self.state
        training = now.validation * math.exp(0.01 * noise) + 0.5 * spike
        adaptive = now.clip != "none"
        volatility = (abs(noise) + 8 * math.log1p(4 * spike)) / 2.5
        features = dict.fromkeys(FEATURES, 0.0) | self._situation(now)
        features |= {
            "progress": now.horizon.progress(now.decision),
            "loss": math.log(training / REFERENCE),
            "loss_slope": 10 * math.log(now.validation / now.validation_before),
            "loss_spread": 0.1 + 0.2 * min(r, 10.0) + spike,
            "loss_peak": math.log1p(spike / training),
            "gradient": math.log((now.gradient or 1.0) / (before.gradient or now.gradient or 1.0)),
            "gradient_peak": math.log1p(4 * spike),
            "clipped": (0.2 if spike else 0.02) if adaptive else 0.0,
            "lr": math.log(now.lr_scale * now.schedule(before.decision)),
            "lr_scale": math.log(now.lr_scale),
            "weight_decay_scale": math.log(now.weight_decay_scale),
            f"clip_{now.clip}": 1.0,
            "reset_recency": 0.0 if now.reset_at is None else math.exp(now.reset_at - now.decision),
            # The sensitivity of ln(gain) to ln(learning rate), as the cosine of two gradients would
            # show it.
            "hypergradient": 0.5 * (1 - r * r) / (1 + r * r) + 0.05 * noise,
            "update_ratio": math.log10(r),
            "probe_gap": math.log(now.validation / training),
            "volatility": volatility,
            "index": volatility,
            "fired": float(spike > 0),
        }
        return Features(**features).vector()

    def _info(self, fired: bool, masked: tuple[str, ...]) -> dict[str, Any]:
        state = self.state
        return {
            "step": state.decision * self.environment.decision_steps,
            "validation_loss": state.validation,
            "fired": int(fired),
            "masked": list(masked),
        }
