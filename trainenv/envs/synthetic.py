"""An environment in which a training run follows a law, with a known optimum.

It has the spaces of `TrainingEnv`, takes thousands of decisions a second, and trains nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

from trainenv.config.schema import EnvironmentConfig, InterventionConfig
from trainenv.envs.observation import FEATURES, Features
from trainenv.envs.spaces import Observation, SteeredEnv, episode_over, no_run, snapshot_among
from trainenv.envs.synthetic_law import EPOCH, REFERENCE, SCHEDULE, Law, State, World, best_plan
from trainenv.interventions import ActionVector, after
from trainenv.training.compatibility import check_snapshot
from trainenv.training.data_order import DataOrder, flagged_with
from trainenv.training.schedules import Horizon
from trainenv.types import CLIP_NAMES, ClipName, Intervention, Snapshot, UserError, as_whole


class SyntheticEnv(SteeredEnv):
    """Steer a training run that follows the law of `trainenv.envs.synthetic_law`.

    **Action, observation, reward, termination, truncation and reset** are those of `TrainingEnv`:
    `MultiDiscrete([4, 3, 5, 2, 2, 2])`, `Box(-10, 10, (32,), float32)`, the fall in
    ln(validation loss) less charges. Features that the law does not have (entropies, embedding,
    shortcut) are 0. No FLOPs are spent, so `info` has no "flops".

    **Spikes** belong to data: a data index causes a spike if its random number is below the chance
    at the learning rate in force. That index is then flagged. After a `rewind` it can be skipped,
    and the spike does not come back; reordering the data moves it.

    Args:
        decisions: Budget, in decisions.
        spikes: True for spikes. Without them an episode is deterministic given the seed, and
            `optimum` is exact.
        interventions: Configuration of the action space.
        environment: Configuration of charges and divergence cap.
        law: Constants of the law.
        render_mode: `ansi`, `rgb_array` or None, see `SteeredEnv`.

    Raises:
        UserError: There is no decision, or the divergence cap is too low for the law.
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
                "divergence_loss must be above 1.2 in this environment, "
                f"found {self.environment.divergence_loss:g}"
            )
        if unknown := set(self.codec.config.clips) - set(CLIP_NAMES):
            raise UserError(
                f"interventions.clips must be among {', '.join(CLIP_NAMES)} in this environment, "
                f"found {', '.join(sorted(unknown))}; leave them out"
            )
        self._seed = 0
        self._current: State | None = None

    @property
    def state(self) -> State:
        """The state now, a value. It exists after the first `reset`."""
        if self._current is None:
            raise no_run()
        return self._current

    @property
    def world(self) -> World:
        """The constants that observations do not show."""
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
        return Features(**features).vector(), self._noted(self._info(False, ()), fresh=True)

    def step(self, action: ActionVector) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        state = self.state
        cap = self.environment.divergence_loss * REFERENCE
        if state.over:
            raise episode_over()
        intervention, masked = self.codec.legal(action, state)
        state = self._applied(state, intervention)
        # The rest of the budget may have been spent elsewhere since the last decision.
        idle = state.decision >= state.horizon.end
        r = self.world.base * state.schedule(state.decision) * state.lr_scale
        data = state.order.index(state.decision) % EPOCH
        spiked = self.spikes and not idle and self.world.draws[data] < self.law.chance(r)
        spike = 0.0
        if spiked:
            spike = self.world.sizes[data] * r
        after = replace(state, validation_before=state.validation)
        if not idle:
            after = self._trained(state, r, spike)
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
            self._noted(self._info(spiked, masked)) | {"charges": charges},
        )

    @property
    def steered(self) -> State:
        return self.state

    def flag(self, data_indices: Iterable[int]) -> None:
        """Flag harmful data indices, for `Intervention(skip_batch=True)`; `rewind` keeps them."""
        self._current = replace(self.state, flagged=flagged_with(self.state.flagged, data_indices))

    def spend(self, decisions: int) -> None:
        """Take decisions off the budget, as many as were spent elsewhere.

        The run anneals and ends that much earlier. The charge is taken off the next reward.
        """
        state = self.state
        decisions = as_whole(decisions, "decisions", least=0)
        horizon = state.horizon.spend(state.decision, decisions)
        self._current = replace(
            state, horizon=horizon, owed=state.owed + decisions / self.decisions
        )

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this episode, and keep the flagged data.

        The decisions since the snapshot are taken off the budget.

        Raises:
            UserError: The snapshot is not an earlier one of this episode.
        """
        before = self.state
        seed, back = self._read(snapshot)
        if seed != self._seed or back.decision > before.decision:
            raise UserError(
                f"a rewind goes back in its own episode: expected an earlier snapshot of it, "
                f"found decision {back.decision} of the episode with seed {seed}; "
                "use restore() for others"
            )
        self._current = back
        self.flag(before.flagged)
        self.spend(before.decision - back.decision + back.horizon.end - before.horizon.end)

    # ── the environment as a value ────────────────────────────────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """Return the whole state as JSON values.

        It is for `restore` or `reset(options={"snapshot": …})`.
        """
        state = {f.name: getattr(self.state, f.name) for f in fields(State)}
        state |= {
            "horizon": asdict(state["horizon"]),
            "order": state["order"].state_dict(),
            "flagged": list(state["flagged"]),
        }
        step = self.state.decision * self.environment.decision_steps
        return Snapshot(step=step, tensors={}, state={"seed": self._seed, "synthetic": state})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this environment or of another synthetic one."""
        self._seed, self._current = self._read(snapshot)

    def fork(self) -> SyntheticEnv:
        """Return an independent environment in the same state."""
        return self._fork(self.spikes)

    def _fork(self, spikes: bool) -> SyntheticEnv:
        fork = SyntheticEnv(
            self.decisions, spikes, self.codec.config, self.environment, self.law, self.render_mode
        )
        fork._seed = self._seed
        fork._current = self.state
        fork._losses = list(self._losses)
        fork._np_random = copy.deepcopy(self._np_random)
        return fork

    def _read(self, snapshot: Snapshot) -> tuple[int, State]:
        check_snapshot(snapshot)
        if "synthetic" not in snapshot.state:
            raise UserError(
                "expected a snapshot of a synthetic environment, found one of a training run; "
                "give it to a TrainingEnv"
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
        """Return the best return from here on without spikes, and interventions that attain it.

        With `spikes=False`, and no excess left from before, it is exact up to rounding. The final
        loss falls with the final progress

            P = const + Σ_k [gain(r_k) − ρ^(K−1−k)·(1 − ρ)·(k + 1)·hidden(r_k)]
                − Σ_k decay cost − Σ_k clip cost.

        Each reset costs half a gain, so none is made; policy `none` costs nothing. The multipliers
        on learning rate and weight decay are in different sums, and different parts of the action
        change them. Each sum is hence maximised alone, by dynamic programming over all multipliers
        that can be reached (see `best_path`).

        If you use your own law, keep `reset_gain` ≤ 1 and no clip cost below that of `none`.

        With spikes it is an upper bound: the same actions give the same r, and a spike only adds
        excess, slows gain and is charged (reordering or skipping data changes nothing but spikes).
        It takes about 0.1 s for 60 decisions, and memory as decisions ^ (number of learning-rate
        factors).
        """
        return self._planned(toll=0.0, clip="none")

    def reference(self, toll: float = 4.0) -> list[Intervention]:
        """Return a plan that is good with spikes, though not optimal.

        It is that of `optimum` with ZClip, where each expected spike costs progress. It knows the
        hidden base learning rate, but not which data cause spikes, and it does not react to them.

        Args:
            toll: Progress lost for each spike.
        """
        return self._planned(toll=toll, clip="zclip")[1]

    def _planned(self, *, toll: float, clip: ClipName) -> tuple[float, list[Intervention]]:
        """Return the return without spikes of the best plan, and the plan."""
        state = self.state
        plan = best_plan(self.law, self.world, state, self.codec.config, toll=toll, clip=clip)
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
        """Return the state after a decision.

        Args:
            state: State with the intervention of the decision in force.
            r: Learning rate in units of the critical one.
            spike: Size of the spike, nats; 0 for none.
        """
        law = self.law
        place = CLIP_NAMES.index(state.clip)
        recovery = law.recovery
        gain_share = 1.0
        if state.reset_at == state.decision:
            recovery = law.recovery_reset
            gain_share = law.reset_gain
        excess = state.excess * recovery + spike * law.damping[place]
        off = math.log2(state.weight_decay_scale) - self.world.decay
        costs = law.decay_cost * state.schedule(state.decision) * off * off + law.clip_cost[place]
        gain = law.gain(r) * gain_share / (1 + law.stall * excess)
        gained = state.gained + gain - costs
        hidden = law.memory * state.hidden + (1 - law.memory) * (state.decision + 1) * law.hidden(r)
        index = state.order.index(state.decision)
        flagged = state.flagged
        if spike:
            flagged = tuple(sorted({*flagged, index}))
        return replace(
            state,
            decision=state.decision + 1,
            flagged=flagged,
            gained=gained,
            hidden=hidden,
            excess=excess,
            validation=law.loss(gained - hidden) + excess,
            validation_before=state.validation,
            gradient=(1 + 4 * excess) * math.exp(0.05 * self.world.noise[index % EPOCH]),
        )

    def _situation(self, state: State) -> dict[str, float]:
        """Return the features that exist before the first decision already."""
        return {
            "budget_left": max(0.0, 1 - state.decision / max(1, state.horizon.end)),
            "validation": math.log(state.validation / REFERENCE),
            "validation_fall": 10 * math.log(state.validation_before / state.validation),
            "flagged": float(bool(state.flagged_ahead)),
        }

    def _observe(self, before: State, spike: float, r: float, noise: float) -> Observation:
        """Return the observation after a decision.

        The batch that causes a spike has a high training loss itself.

        Args:
            before: State before the training of the decision.
            spike: Size of the spike, nats; 0 for none.
            r: Learning rate in units of the critical one.
            noise: Measurement noise, standard deviations.
        """
        now = self.state
        training = now.validation * math.exp(0.01 * noise) + 0.5 * spike
        clipped = 0.02
        if spike:
            clipped = 0.2
        if now.clip == "none":
            clipped = 0.0
        recency = 0.0
        if now.reset_at is not None:
            recency = math.exp(now.reset_at - now.decision)
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
            "clipped": clipped,
            "lr": math.log(now.lr_scale * now.schedule(before.decision)),
            "lr_scale": math.log(now.lr_scale),
            "weight_decay_scale": math.log(now.weight_decay_scale),
            f"clip_{now.clip}": 1.0,
            "reset_recency": recency,
            # Sensitivity of ln(gain) to ln(learning rate), as the cosine of two gradients would
            # have it.
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
