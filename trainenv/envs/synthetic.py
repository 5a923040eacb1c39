"""A training run as a law: thousands of decisions a second, the spaces of `TrainingEnv`, and an optimum that is known.

The law, with r = base × schedule × multiplier, the learning rate in units of the critical one, at decision k of K:

    loss      L = floor + A·(P/P₀)^−α + X            P₀: where L is the loss of a uniform guess
    progress  P = P₀ + Σ gain(r) − Σ costs − D       the learning-rate sum, less what noise hides of it
    noise     D ← ρ·D + (1 − ρ)·(k + 1)·noise(r)
    excess    X ← recovery·X + a spike, at rate hazard(r)

A power law of the learning-rate sum with a part that annealing gives back is the shape of measured curves (Tissue 2024; Luo
2025, multi-power law). Here that part is written as progress hidden by noise, the hills of the river valley (Wen 2024), so
that the final loss depends on the path through *one sum*, and `optimum` can be exact. It follows that short horizons lie:
cutting the learning rate gives D back at once and costs gain for good. Above the critical learning rate progress stalls and
spikes set in steeply (Cohen 2021, the edge of stability). How far the base learning rate is off is hidden, drawn at reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trainenv.config import EnvironmentConfig, InterventionConfig
from trainenv.envs.observation import BOUND, FEATURES, Features
from trainenv.interventions import ActionCodec, ActionVector
from trainenv.order import DataOrder
from trainenv.schedules import Cosine, Horizon
from trainenv.types import CLIP_NAMES, ClipName, Intervention, Snapshot, UserError

Observation = NDArray[np.float32]
Number = TypeVar("Number", float, NDArray[np.float64])

REFERENCE = math.log(256)  # loss of a uniform guess over bytes, nats per token
EPOCH = 256  # data indices, one a decision, until the data (and their spikes) come round again
_SCHEDULE = Cosine(warmup=2, final=0.1)


@dataclass(frozen=True, kw_only=True)
class Law:
    """The constants, losses in nats per token and progress in decisions at the critical learning rate.

    Attributes:
        floor: loss that no training removes.
        exponent: α of the power law.
        start: P₀.
        noise: progress that noise hides in the long run at small r, per decision so far and per r².
        memory: ρ, the share of hidden progress that is still hidden a decision later.
        hazard: odds of a spike are hazard × (1/4 + r⁴).
        recovery: share of the excess left after a decision; `recovery_reset`: after one that began with a momentum reset.
        stall: how much excess slows progress: gain ÷ (1 + stall·X).
        reset_gain: share of the gain that the warm-up after a momentum reset leaves of its decision.
        decay_cost: progress lost in a decision, × schedule, per squared doubling of the weight decay away from its optimum.
        clip_cost: progress lost in a decision, by clip policy.
        damping: share of a spike that gets through, by clip policy.
    """

    floor: float = 1.2
    exponent: float = 0.5
    start: float = 1.5
    noise: float = 0.25
    memory: float = 0.5
    hazard: float = 0.02
    recovery: float = 0.6
    recovery_reset: float = 0.2
    stall: float = 4.0
    reset_gain: float = 0.5
    decay_cost: float = 0.01
    clip_cost: tuple[float, ...] = (0.0, 0.004, 0.006, 0.008)
    damping: tuple[float, ...] = (1.0, 0.4, 0.3, 0.25)

    def gain(self, r: Number) -> Number:
        """Progress of a decision: 2r well below the critical learning rate, 1 at it, falling above."""
        return 2 * r / (1 + r * r)

    def hidden(self, r: Number) -> Number:
        """Progress that noise hides, per decision so far: quadratic in r, then level."""
        return self.noise * r * r / (1 + r * r / 4)

    def chance(self, r: Number) -> Number:
        """Chance of a spike in a decision."""
        odds = self.hazard * (0.25 + r * r * r * r)
        return odds / (1 + odds)

    def loss(self, progress: float) -> float:
        """Loss without spikes. Noise alone lifts it to at most 1.2 × that of a uniform guess, so never diverges."""
        reducible = (REFERENCE - self.floor) * math.pow(max(progress, 1e-9) / self.start, -self.exponent)
        return min(self.floor + reducible, 1.2 * REFERENCE)


@dataclass(frozen=True)
class World:
    """What is hidden: a pure function of the seed, so that branches meet the same draws.

    Attributes:
        base: the base learning rate in units of the critical one, 1/4 to 6.
        decay: log2 of the best weight decay scale, −2 to 2.
        draws: for each data index, what is held against the chance of a spike.
        sizes: of those spikes, in nats at r = 1.
        noise: on what is measured, in standard deviations.
    """

    base: float
    decay: float
    draws: tuple[float, ...]
    sizes: tuple[float, ...]
    noise: tuple[float, ...]

    @staticmethod
    @lru_cache(maxsize=256)
    def of(seed: int) -> World:
        rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
        base = math.exp(rng.uniform(math.log(1 / 4), math.log(6)))
        decay = float(rng.integers(-2, 3))
        draws, sizes, noise = rng.random(EPOCH), 0.8 * np.exp(0.5 * rng.standard_normal(EPOCH)), rng.standard_normal(EPOCH)
        return World(base, decay, tuple(draws.tolist()), tuple(sizes.tolist()), tuple(noise.tolist()))


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that the future depends on beside the seed. Counts in decisions.

    Attributes:
        gained: P + D. `hidden` is D, `excess` X.
        reset_at: decision of the last momentum reset, None without one.
        gradient: mean gradient norm of the last decision, None before the first.
        owed: share of the budget that was spent elsewhere and is charged with the next decision.
    """

    decision: int = 0
    horizon: Horizon
    order: DataOrder
    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    clip: ClipName = "zclip"
    flagged: tuple[int, ...] = ()
    gained: float
    hidden: float = 0.0
    excess: float = 0.0
    reset_at: int | None = None
    validation: float
    validation_before: float
    gradient: float | None = None
    owed: float = 0.0
    over: bool = False

    @cached_property
    def flagged_ahead(self) -> tuple[int, ...]:
        """Data indices that were flagged and are still to come (after a rewind)."""
        return self.order.ahead(self.decision, self.flagged) if self.flagged else ()

    def schedule(self, decision: int) -> float:
        return _SCHEDULE(decision, self.horizon.progress(decision))


def best_path(
    scales: tuple[float, ...],
    start: float,
    bounds: tuple[float, float],
    steps: int,
    value: Callable[[int, NDArray[np.float64]], NDArray[np.float64]],
) -> list[float]:
    """The factors, one a step, that maximise Σ value(step, multiplier in force): backward dynamic programming.

    A state is how often each factor has been used, so an array of the values of step k has the shape (k + 1,) × n.

    Args:
        scales: the factors to choose from, 1 first.
        start: the multiplier before the first step.
        bounds: of the multiplier.
        steps: how many.
        value: of a step (counted from 0), for an array of multipliers.
    """
    factors = scales[1:]
    if (steps + 1) ** len(factors) > 2e7:
        raise UserError(f"an exact optimum over {steps} decisions needs at most 3 factors beside 1, found {len(factors)}")
    grid = np.array(start, dtype=np.float64)
    for factor in factors:
        grid = np.multiply.outer(grid, np.float64(factor) ** np.arange(steps + 1))  # (steps + 1,) × n
    legal = (grid >= bounds[0] * (1 - 1e-9)) & (grid <= bounds[1] * (1 + 1e-9))
    best = np.zeros_like(grid)
    choices: list[NDArray[np.int8]] = []
    for k in reversed(range(steps)):
        after = (slice(0, k + 2),) * len(factors)
        values = np.where(legal[after], value(k, grid[after]) + best[after], -np.inf)  # (k + 2,) × n
        starts = [(0,) * len(factors), *np.eye(len(factors), dtype=int).tolist()]  # doing nothing, then each factor once more
        options = np.stack([values[tuple(slice(i, i + k + 1) for i in first)] for first in starts])
        best = options.max(0)
        choices.append(options.argmax(0).astype(np.int8))
    path, used = [], [0] * len(factors)
    for choice in reversed(choices):
        taken = int(choice[tuple(used)])
        path.append(scales[taken])
        if taken:
            used[taken - 1] += 1
    return path


class SyntheticEnv(gym.Env[Observation, NDArray[np.int64]]):
    """Steer a training run that follows the law of this module.

    **Action, observation, reward, termination, truncation and reset** are those of `TrainingEnv`: `MultiDiscrete([4, 3, 5, 2, 2,
    2])`, `Box(-10, 10, (32,), float32)` with 0 for the features that the law does not have (entropies, embedding, shortcut),
    the fall in ln(validation loss) less charges. No FLOPs are spent, so `info` has no "flops".

    **Spikes** belong to data: index i spikes where its draw is below the chance at the learning rate in force. That data is
    flagged; after a `rewind` it can be skipped, and the spike does not come back. A reorder moves it.

    Args:
        decisions: the budget.
        spikes: whether there are any. Without them an episode is deterministic given the seed, and `optimum` is exact.
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
        self.decisions, self.spikes, self.law, self.render_mode = decisions, spikes, law or Law(), render_mode
        self.environment = environment or EnvironmentConfig()
        if decisions < 1:
            raise UserError(f"decisions must be 1 or more, found {decisions}")
        if self.environment.divergence_loss <= 1.2:
            raise UserError(f"divergence_loss must be above 1.2 here, found {self.environment.divergence_loss:g}")
        self.codec = ActionCodec(interventions or InterventionConfig())
        self.observation_space = spaces.Box(-BOUND, BOUND, (len(FEATURES),), np.float32)
        self.action_space = spaces.MultiDiscrete(list(self.codec.sizes))
        self._seed = 0
        self._current: State | None = None

    @property
    def state(self) -> State:
        """The state now; a value. Exists after the first `reset`."""
        if self._current is None:
            raise UserError("there is no run yet; call reset() first")
        return self._current

    @property
    def world(self) -> World:
        """What is hidden from the observation."""
        return World.of(self._seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        snapshot = (options or {}).get("snapshot")
        if unknown := set(options or {}) - {"snapshot"}:
            raise UserError(f"reset knows the option 'snapshot', found {', '.join(sorted(unknown))}")
        if snapshot is None:
            self._seed = int(self.np_random.integers(2**31))
            self._current = State(
                horizon=Horizon(end=self.decisions, since=min(_SCHEDULE.warmup, self.decisions)),
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
        state, cap = self.state, self.environment.divergence_loss * REFERENCE
        if state.over:
            raise UserError("the episode is over; call reset() before the next step()")
        intervention, masked = self.codec.legal(action, state)
        state = self._applied(state, intervention)
        idle = state.decision >= state.horizon.end  # what was left of the budget went elsewhere since the last decision
        r = self.world.base * state.schedule(state.decision) * state.lr_scale
        data = state.order.index(state.decision) % EPOCH
        spiked = self.spikes and not idle and self.world.draws[data] < self.law.chance(r)
        spike = self.world.sizes[data] * r if spiked else 0.0
        after = replace(state, validation_before=state.validation) if idle else self._trained(state, r, spike)
        terminated = not after.validation < cap
        after = replace(after, validation=min(after.validation, cap), owed=0.0)
        truncated = after.decision >= after.horizon.end and not terminated
        self._current = replace(after, over=terminated or truncated)
        charges = self.environment.instability_charge * spiked + self.environment.compute_charge * state.owed
        reward = math.log(after.validation_before / after.validation) - charges
        observation = self._observe(state, spike, r, self.world.noise[data])
        return observation, reward, terminated, truncated, self._info(spiked, masked) | {"charges": charges}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which values are legal now, the parts one after another: bool [sum(nvec)], as sb3-contrib's MaskablePPO takes it."""
        return np.concatenate(self.codec.masks(self.state))

    def flag(self, data_indices: Iterable[int]) -> None:
        """Mark data indices as harmful, for `Intervention(skip_batch=True)`; `rewind` carries them over."""
        self._current = replace(self.state, flagged=tuple(sorted({*self.state.flagged, *data_indices})))

    def spend(self, decisions: int) -> None:
        """Take `decisions` decisions' worth off the budget: the run ends, annealed, that much earlier. Charged with the next."""
        state = self.state
        horizon = state.horizon.spend(state.decision, decisions)
        self._current = replace(state, horizon=horizon, owed=state.owed + decisions / self.decisions)

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this episode, keeping the flagged data; the decisions since come off the budget."""
        before, (seed, back) = self.state, self._read(snapshot)
        if seed != self._seed or back.decision > before.decision:
            raise UserError("a rewind goes back in its own episode: expected an earlier snapshot of it; use restore() for others")
        self._current = back
        self.flag(before.flagged)
        self.spend(before.decision - back.decision + back.horizon.end - before.horizon.end)

    # ── the environment as a value ──────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """The whole state, as JSON values, for `restore` or `reset(options={"snapshot": …})`."""
        state = {f.name: getattr(self.state, f.name) for f in fields(State)}
        state |= {"horizon": asdict(state["horizon"]), "order": state["order"].state_dict(), "flagged": list(state["flagged"])}
        step = self.state.decision * self.environment.decision_steps
        return Snapshot(step=step, tensors={}, state={"seed": self._seed, "synthetic": state})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, of this environment or of another synthetic one."""
        self._seed, self._current = self._read(snapshot)

    def fork(self) -> SyntheticEnv:
        """An independent environment in the same state."""
        return self._fork(self.spikes)

    def _fork(self, spikes: bool) -> SyntheticEnv:
        fork = SyntheticEnv(self.decisions, spikes, self.codec.config, self.environment, self.law, self.render_mode)
        fork._seed, fork._current = self._seed, self.state
        return fork

    def _read(self, snapshot: Snapshot) -> tuple[int, State]:
        if not isinstance(snapshot, Snapshot):
            raise UserError(f"expected a Snapshot, as snapshot() returns it, found {type(snapshot).__name__}")
        if "synthetic" not in snapshot.state:
            raise UserError("expected a snapshot of a synthetic environment, found one of a training run; TrainingEnv takes it")
        seed, saved = int(snapshot.state["seed"]), snapshot.state["synthetic"]
        order = DataOrder(seed=seed, epoch_steps=EPOCH, block_steps=1).load_state_dict(saved["order"])
        composed = {"horizon": Horizon(**saved["horizon"]), "order": order, "flagged": tuple(saved["flagged"])}
        return seed, State(**(saved | composed))

    # ── the known optimum ───────────────────────────────────────────────────────────────────────────────────────────

    def optimum(self) -> tuple[float, list[Intervention]]:
        """The best return that is attainable from here on when no spike comes, and interventions that attain it.

        With `spikes=False`, and no excess left from before, it is exact, to rounding. The final loss falls with the final P, and

            P = const + Σ_k [gain(r_k) − ρ^(K−1−k)·(1 − ρ)·(k + 1)·hidden(r_k)] − Σ_k decay cost − Σ_k clip cost,

        less half a gain for each reset, so none is made; policy `none` costs nothing. The learning-rate and the weight decay
        multiplier enter different sums and are steered by different parts of the action, so each sum is maximised alone, by
        dynamic programming over every multiplier that can be reached (factors commute: a state is how often each was used).

        A law of your own must keep `reset_gain` ≤ 1 and no clip cost below that of `none`.

        With spikes it is an upper bound: the same actions meet the same r, and a spike only adds excess, slows gain and is
        charged (a reorder or a skip changes nothing but spikes). Takes about 0.1 s for 60 decisions, and memory as
        decisions ^ (number of learning-rate factors).
        """
        return self._planned(toll=0.0, clip="none")

    def reference(self, toll: float = 4.0) -> list[Intervention]:
        """A good plan where there are spikes, not an optimal one: as `optimum`, with ZClip and `toll` progress lost a spike.

        It knows the hidden base learning rate but not which data spikes, and does not react to what happens.
        """
        return self._planned(toll=toll, clip="zclip")[1]

    def _planned(self, *, toll: float, clip: ClipName) -> tuple[float, list[Intervention]]:
        state, law, world, config = self.state, self.law, self.world, self.codec.config
        first, steps = state.decision, 0 if state.over else max(0, state.horizon.end - state.decision)

        def rate_value(k: int, scale: NDArray[np.float64]) -> NDArray[np.float64]:
            r = world.base * state.schedule(first + k) * scale
            still_hidden = law.memory ** (steps - 1 - k) * (1 - law.memory) * (first + k + 1)
            return law.gain(r) - still_hidden * law.hidden(r) - toll * law.chance(r)

        def decay_value(k: int, scale: NDArray[np.float64]) -> NDArray[np.float64]:
            return -law.decay_cost * state.schedule(first + k) * (np.log2(scale) - world.decay) ** 2

        rates = best_path(config.lr_scales, state.lr_scale, config.lr_bounds, steps, rate_value)
        decays = best_path(config.weight_decay_scales, state.weight_decay_scale, config.weight_decay_bounds, steps, decay_value)
        plan = [Intervention(lr_scale=rate, weight_decay_scale=decay) for rate, decay in zip(rates, decays)]
        if plan and state.clip != clip:
            plan[0] = replace(plan[0], clip=clip)
        calm = self._fork(spikes=False)
        calm._current = replace(state, excess=0.0, owed=0.0)
        gained = [calm.step(self.codec.encode(intervention))[1] for intervention in plan]
        return sum(gained, 0.0), plan

    # ── one decision ────────────────────────────────────────────────────────────────────────────────────────────────

    def _applied(self, state: State, intervention: Intervention) -> State:
        order = state.order.reorder(state.decision) if intervention.data_reorder else state.order
        if intervention.skip_batch:
            order = order.skip(order.ahead(state.decision, state.flagged))
        return replace(
            state,
            lr_scale=state.lr_scale * intervention.lr_scale,
            weight_decay_scale=state.weight_decay_scale * intervention.weight_decay_scale,
            clip=intervention.clip or state.clip,
            reset_at=state.decision if intervention.momentum_reset else state.reset_at,
            order=order,
        )

    def _trained(self, state: State, r: float, spike: float) -> State:
        """The state after a decision at learning rate `r` that met a spike of `spike` nats (0: none)."""
        law, place, reset = self.law, CLIP_NAMES.index(state.clip), state.reset_at == state.decision
        excess = state.excess * (law.recovery_reset if reset else law.recovery) + spike * law.damping[place]
        off = math.log2(state.weight_decay_scale) - self.world.decay
        costs = law.decay_cost * state.schedule(state.decision) * off * off + law.clip_cost[place]
        gained = state.gained + law.gain(r) * (law.reset_gain if reset else 1.0) / (1 + law.stall * excess) - costs
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
        """What a monitor would see of the decision since `before`. The batch that spikes has a high loss of its own."""
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
            # The sensitivity of ln(gain) to ln(learning rate), as the cosine of two gradients would show it.
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
