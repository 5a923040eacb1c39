"""The world model: networks and what makes their numbers honest, behind three calls.

model = worldmodel.load_pretrained()
forecasts = model.forecast(history, interventions)       # 128 in one call
root = model.initial_inference([history])                # for a search
next = model.recurrent_inference(root.latent, actions)   # [B, 6] action vectors

Numbers come from the networks, and honesty from `calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.types import Estimate, Forecast, Inference, Intervention, RunHistory, UserError
from trainenv.worldmodel import features
from trainenv.worldmodel.calibration import Calibrations, nats, strata_of
from trainenv.worldmodel.curves import CurveForecaster, MultiPower
from trainenv.worldmodel.examples import LEVELS, Examples, Predictions
from trainenv.worldmodel.features import ACTION, DECISIONS, STATE, Floats
from trainenv.worldmodel.law_prior import prior
from trainenv.worldmodel.networks import LOOKS, TARGETS, Heads, Networks, to_units

_CHUNK = 4096  # branches at a time


class Model:
    """A `trainenv.types.WorldModel`. Deterministic, and never changed by what is asked of it.

    Args:
        networks: trained.
        calibrations: fitted on trunks that the networks have not seen; None gives what the networks
            say as it is.
        card: what it was made of, and how good it was found to be; JSON values.
        actions: the action space that a search's action vectors are of.

    Attributes:
        curves: what forecasts absolute losses, over schedules too: the anchored multi-power law,
            which the networks do not touch.
    """

    curves: ClassVar[CurveForecaster] = MultiPower()

    def __init__(
        self,
        networks: Networks,
        calibrations: Calibrations | None = None,
        card: Mapping[str, Any] | None = None,
        *,
        actions: InterventionConfig | None = None,
    ) -> None:
        self.networks = networks.eval().requires_grad_(False)
        self.calibrations = calibrations
        self.card = dict(card or {})
        self._codec = ActionCodec(actions or InterventionConfig())
        self._vectors: dict[
            bytes, tuple[float, ...]
        ] = {}  # features of action vectors seen so far: a memo, nothing else

    def forecast(
        self,
        history: RunHistory,
        interventions: Sequence[Intervention | Sequence[Intervention]],
        /,
        *,
        picks: bool = False,
    ) -> list[Forecast]:
        """One forecast an entry, in order.

        Args:
            history: what is known of the run: at least 16 steps, the last of them finite.
            interventions: each one intervention now, or one for each of up to four decisions from
                now on; any number of them.
            picks: intervals that hold for those that are picked by their median of `annealed`, not
                for all alike: wider.

        Raises:
            UserError: the history is too short or not finite where it counts, or an entry is no
                intervention.
        """
        columns, now = features.read(history)
        actions = action_features(interventions)  # [K, 4, A]
        if not len(actions):
            return []
        state = features.state(columns, now)
        law = prior(columns, now, actions[..., 0])
        nothing = np.logical_not(actions.any(axis=(1, 2)))
        raw = self._predict(state[None], np.zeros(len(actions), dtype=np.int64), actions, law)
        if self.calibrations is None:
            limit = np.inf
        else:
            strata = strata_of(
                np.broadcast_to(state, (len(actions), len(state))), actions[..., 0].sum(axis=1)
            )
            raw = self.calibrations.apply(raw, strata, picks=picks)
            limit = self.calibrations.disagreement
        return _forecasts(raw, nothing, now.decision, limit)

    @property
    def flops_per_future(self) -> float:
        """FLOPs that a future costs to look at: all members' forward passes over four decisions and of what judges them."""
        networks = self.networks
        judges = (networks.effect, networks.spread, networks.gate, networks.risk)
        weights = DECISIONS * _size(networks.dynamics) + sum(map(_size, judges))
        return 2.0 * weights

    def predict(self, examples: Examples, *, picks: bool = False) -> Predictions:
        """What is forecast of each branch of a data set."""
        raw = self.raw(examples)
        if self.calibrations is None:
            return raw
        strata = strata_of(examples.states[examples.snapshot], examples.actions[..., 0].sum(axis=1))
        return self.calibrations.apply(raw, strata, picks=picks)

    def raw(self, examples: Examples) -> Predictions:
        """What the networks alone say of each branch."""
        parts = []
        for start in range(0, max(len(examples), 1), _CHUNK):
            some = examples.where(np.arange(start, min(start + _CHUNK, len(examples))))
            parts.append(self._predict(some.states, some.snapshot, some.actions, some.law))
        return Predictions(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in Predictions.__dataclass_fields__
            }
        )

    @torch.inference_mode()
    def _predict(
        self, states: Floats, which: NDArray[np.int64], actions: Floats, law: Floats
    ) -> Predictions:
        """Of n sequences of actions [n, 4, A], each from the state numbered `which` [n] among [S, F]."""
        networks = self.networks
        used, place = np.unique(which, return_inverse=True)
        # (M, S', W)
        start = networks.represent(_float(states[used]))
        rows = torch.from_numpy(place)
        # Doing nothing goes on beside the rest, once for each state.
        end = torch.cat([start[:, rows], start], dim=1)
        tried = torch.cat([_float(actions), torch.zeros(len(used), DECISIONS, len(ACTION))])
        for decision in range(DECISIONS):
            end = networks.step(end, tried[:, decision])
        end, nothing = end.split([len(actions), len(used)], dim=1)
        if len(used) > 1:
            start = start[:, rows]
            nothing = nothing[:, rows]
        return _collect(networks.forecast(start, end, nothing, to_units(_float(law))))

    @torch.inference_mode()
    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        """The states that histories are in, as roots of a search."""
        read = [features.read(history) for history in histories]
        states = (
            np.stack([features.state(*one) for one in read]) if read else np.zeros((0, len(STATE)))
        )
        latent = self.networks.represent(_float(states))
        return self._inference(latent, np.zeros(len(states), dtype=np.float32))

    @torch.inference_mode()
    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        """What B states become; see `WorldModel.recurrent_inference`. Latents are [B, M·W]."""
        before = (
            torch.from_numpy(latent)
            .view(len(latent), self.networks.shape.members, self.networks.shape.width)
            .transpose(0, 1)
        )
        after = self.networks.step(
            before,
            torch.tensor([self._vector(action) for action in actions]).view(
                len(latent), len(ACTION)
            ),
        )
        reward = self.networks.expected(self.networks.rewards(before, after)).mean(0)
        return self._inference(after, reward.numpy())

    def _inference(self, latent: Tensor, reward: NDArray[np.float32]) -> Inference:
        value, policy = self.networks.judge(latent)
        return Inference(
            latent=latent.transpose(0, 1).flatten(1).numpy(),
            reward=reward,
            value=self.networks.expected(value).mean(0).numpy(),
            logits=policy.mean(0).numpy(),
        )

    def _vector(self, action: NDArray[np.integer[Any]]) -> tuple[float, ...]:
        key = np.ascontiguousarray(action, dtype=np.int64).tobytes()
        if key not in self._vectors:
            self._vectors[key] = features.action(self._codec.decode(action))
        return self._vectors[key]


def action_features(interventions: Sequence[Intervention | Sequence[Intervention]]) -> Floats:
    """[K, 4, A] action features; 0 where nothing is done.

    Raises:
        UserError: an entry is neither an intervention nor up to four of them.
    """
    if not isinstance(interventions, Sequence):
        raise UserError(
            f"expected a list of interventions, found {interventions!r:.120}; put it in brackets"
        )
    places: list[int] = []  # of decisions among all, K · 4
    rows: list[tuple[float, ...]] = []
    for place, entry in enumerate(interventions):
        if isinstance(entry, Intervention):
            places.append(DECISIONS * place)
            rows.append(features.action(entry))
            continue
        known = isinstance(entry, Sequence) and all(isinstance(one, Intervention) for one in entry)
        if not known or len(entry) > DECISIONS:
            raise UserError(
                f"expected an Intervention, or up to {DECISIONS} of them in order, found {entry!r:.120} at place {place}; decode "
                "action vectors with trainenv.interventions.ActionCodec"
            )
        places += range(DECISIONS * place, DECISIONS * place + len(entry))
        rows += [features.action(one) for one in entry]
    actions = np.zeros((len(interventions) * DECISIONS, len(ACTION)))
    if rows:
        actions[places] = rows
    return actions.reshape(-1, DECISIONS, len(ACTION))


def _collect(heads: Heads) -> Predictions:
    """The members' forecasts as one: means of quantiles and of probabilities."""
    quantiles = heads.quantiles.mean(0).double().numpy()  # [n, 3, 5]
    times = torch.softmax(heads.recovery, dim=-1).mean(0).double().numpy().cumsum(axis=1)  # [n, 10]
    places = (times[:, None] < np.array(LEVELS)[:, None]).sum(axis=2)  # [n, 5]
    medians = nats(heads.quantiles[:, :, 1, len(LEVELS) // 2].double().numpy())  # [M, n]
    return Predictions(
        horizon=nats(quantiles[:, 0]),
        annealed=nats(quantiles[:, 1]),
        final=nats(quantiles[:, TARGETS - 1]),
        hazard=torch.sigmoid(heads.hazard).mean(0).double().numpy(),
        instability=torch.sigmoid(heads.instability).mean(0).double().numpy(),
        recovery=np.minimum(places, LOOKS) * DECISIONS / LOOKS,
        disagreement=medians.std(axis=0),
    )


def _forecasts(
    said: Predictions, nothing: NDArray[np.bool_], decision: int, limit: float
) -> list[Forecast]:
    """As frozen values, one an entry.

    Doing nothing has Δ 0 by definition, and nothing to disagree about.
    """
    kept = np.where(nothing, 0.0, 1.0)[:, None]
    deltas = [_means(getattr(said, target) * kept) for target in ("horizon", "annealed", "final")]
    recovery = _means(said.recovery * decision)
    disagreement = said.disagreement * kept[:, 0]
    rows = zip(
        *deltas,
        said.hazard.tolist(),
        said.divergence.tolist(),
        said.instability.tolist(),
        recovery,
        disagreement.tolist(),
        (disagreement > limit).tolist(),
    )
    return [
        Forecast(
            horizon=Estimate(*horizon),
            annealed=Estimate(*annealed),
            final=Estimate(*final),
            hazard=tuple(hazard),
            divergence=divergence,
            instability=instability,
            recovery=Estimate(*until),
            disagreement=spread,
            abstain=abstain,
        )
        for horizon, annealed, final, hazard, divergence, instability, until, spread, abstain in rows
    ]


def _means(quantiles: Floats) -> list[list[float]]:
    """Mean, median and the 90 % interval of quantiles [n, 5]; the mean is that of a density flat between them."""
    mean = quantiles @ _FLAT
    return np.stack([mean, quantiles[:, 2], quantiles[:, 0], quantiles[:, -1]], axis=1).tolist()  # type: ignore[no-any-return]


def _flat_weights() -> Floats:
    gaps = np.diff(LEVELS)
    weights = np.zeros(len(LEVELS))
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    weights[[0, -1]] += LEVELS[0]  # the tails stand at their quantiles
    return weights


_FLAT = _flat_weights()


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
