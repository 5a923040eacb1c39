"""The world model: an ensemble of networks and their calibrations, behind three calls.

    model = worldmodel.load_pretrained()
    forecasts = model.forecast(history, interventions)       # 128 in one call
    root = model.initial_inference([history])                # for a search
    child = model.recurrent_inference(root.latent, actions)  # [B, 6] action vectors

The networks make the forecasts; `calibration` corrects their intervals and probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.types import (
    DECISIONS,
    LOOKS,
    Estimate,
    Forecast,
    Inference,
    Intervention,
    PathValues,
    RunHistory,
    UserError,
)
from trainenv.worldmodel import features
from trainenv.worldmodel.calibration import Calibrations, branch_strata, nats, strata_of
from trainenv.worldmodel.curves import CurveForecaster, MultiPower
from trainenv.worldmodel.examples import LEVELS, Examples, Predictions
from trainenv.worldmodel.features import ACTION, STATE, Floats
from trainenv.worldmodel.law_prior import prior
from trainenv.worldmodel.networks import TARGETS, Heads, Networks, to_units
from trainenv.worldmodel.paths.model import PathValueModel

_CHUNK = 4096  # branches forecast at a time
_Z90 = 1.6448536269514722  # standard deviations on each side of a 90 % interval


class Model:
    """A `trainenv.types.WorldModel`: deterministic; no call changes it.

    Args:
        networks: Trained networks.
        calibrations: Calibrations fitted on trunks that the networks have not seen; None leaves the
            forecasts of the networks as they are.
        card: Origin and measured quality of the model, as JSON values.
        actions: Action space of a search's action vectors.
        paths: Model that values paths of the learning rate to the end of the run; None without one.
        blind: True to show the networks nothing of a run; see `blinded`.

    Attributes:
        curves: Forecaster of absolute losses, also under other schedules: the anchored multi-power
            law, which the networks do not change.
    """

    curves: ClassVar[CurveForecaster] = MultiPower()

    def __init__(
        self,
        networks: Networks,
        calibrations: Calibrations | None = None,
        card: Mapping[str, Any] | None = None,
        *,
        actions: InterventionConfig | None = None,
        paths: PathValueModel | None = None,
        blind: bool = False,
    ) -> None:
        self.paths = paths
        self.networks = networks.eval().requires_grad_(False)
        self.calibrations = calibrations
        self.card = dict(card or {})
        self.blind = blind
        self._codec = ActionCodec(actions or InterventionConfig())
        self._vectors: dict[bytes, tuple[float, ...]] = {}  # cached features of action vectors

    def with_parts(self, networks: Networks, calibrations: Calibrations | None) -> Model:
        """Return a model with other networks and calibrations, and the same of everything else."""
        return Model(
            networks,
            calibrations,
            self.card,
            actions=self._codec.config,
            paths=self.paths,
            blind=self.blind,
        )

    def blinded(self) -> Model:
        """Return a copy to which all runs look the same: an ablation.

        No feature of the state counts as measured, so the networks take their averages, and the law
        forecasts no change. Paths are valued by their shape alone. A method that is as good with it
        does not need what the model sees.
        """
        paths = None if self.paths is None else replace(self.paths, blind=True)
        return Model(
            self.networks,
            self.calibrations,
            self.card,
            actions=self._codec.config,
            paths=paths,
            blind=True,
        )

    def seen(self, examples: Examples) -> Examples:
        """Return examples as this model sees them: without states and law if it is blind."""
        if not self.blind:
            return examples
        return replace(
            examples,
            states=np.full_like(examples.states, np.nan),
            law=np.zeros_like(examples.law),
        )

    def forecast(
        self,
        history: RunHistory,
        interventions: Sequence[Intervention | Sequence[Intervention]],
        /,
        *,
        picks: bool = False,
    ) -> list[Forecast]:
        """Return one forecast for each entry, in order.

        Args:
            history: History of the run: at least 16 steps, the last of them finite.
            interventions: Any number of entries; each is one intervention now, or a sequence, one
                for each decision from now on. The networks look at the first four; what a sequence
                does at the end of the run is the value of its path, if the model has paths.
            picks: True for wider intervals, which hold for candidates picked by their median of
                `annealed`; False for intervals that hold for a candidate at random.

        Raises:
            UserError: the history is too short, its last step is not finite, or an entry is no
                intervention.
        """
        columns, context = features.read(history)
        actions = action_features(interventions)  # [K, 4, A]
        if not len(actions):
            return []
        state = self._state(columns, context)
        law = np.zeros((len(actions), 3))
        if not self.blind:
            law = prior(columns, context, actions[..., 0])
        nothing = np.logical_not(actions.any(axis=(1, 2)))
        found = self._predict(state[None], np.zeros(len(actions), dtype=np.int64), actions, law)
        limit = np.inf
        if self.calibrations is not None:
            states = np.broadcast_to(state, (len(actions), len(state)))
            strata = strata_of(states, actions[..., 0].sum(axis=1))
            found = self.calibrations.apply(found, strata, picks=picks)
            limit = self.calibrations.disagreement
        forecasts = _forecasts(found, nothing, context.decision, limit)
        if self.paths is None:
            return forecasts
        return self._with_ends(forecasts, history, interventions)

    @property
    def values_paths(self) -> bool:
        """True if the model values paths of the learning rate."""
        return self.paths is not None

    def path_values(self, history: RunHistory, paths: Floats, /) -> PathValues:
        """Value paths of the learning rate. See `trainenv.types.PathModel`.

        Raises:
            UserError: The model values no paths, the history is too short, or its last step is not
                finite.
        """
        if self.paths is None:
            raise UserError(
                "expected a world model that values paths, found one without; "
                "take worldmodel.load_pretrained(), or build one"
            )
        return self.paths.path_values(history, paths)

    def _with_ends(
        self,
        forecasts: list[Forecast],
        history: RunHistory,
        interventions: Sequence[Intervention | Sequence[Intervention]],
    ) -> list[Forecast]:
        """Return forecasts whose Δ at the end of the run is the value of the path."""
        left = max(1, -(-len(history.lrs_ahead) // history.decision_steps))
        values = self.path_values(history, paths_of(interventions, left))
        found = zip(forecasts, values.change.tolist(), values.disagreement.tolist())
        return [
            replace(
                forecast,
                final=Estimate(
                    mean=change,
                    median=change,
                    low=change - _Z90 * spread,
                    high=change + _Z90 * spread,
                ),
            )
            for forecast, change, spread in found
        ]

    @property
    def flops_per_future(self) -> float:
        """FLOPs of one forecast: the forward passes of all members over four decisions."""
        networks = self.networks
        heads = (networks.effect, networks.spread, networks.gate, networks.risk)
        weights = DECISIONS * _size(networks.dynamics) + sum(map(_size, heads))
        return 2.0 * weights

    @property
    def flops_per_path(self) -> float:
        """FLOPs of the value of one path; 0 without a model of paths."""
        return 0.0 if self.paths is None else self.paths.flops_per_path

    def predict(self, examples: Examples, *, picks: bool = False) -> Predictions:
        """Return calibrated forecasts for the branches of a data set; `picks` as in `forecast`."""
        examples = self.seen(examples)
        raw = self.raw(examples)
        if self.calibrations is None:
            return raw
        return self.calibrations.apply(raw, branch_strata(examples), picks=picks)

    def raw(self, examples: Examples) -> Predictions:
        """Return the forecasts of the networks, without calibration."""
        examples = self.seen(examples)
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
        """Forecast n sequences of decisions.

        Args:
            states: [S, F] features of states.
            which: [n] row in `states` of the state that each sequence starts from.
            actions: [n, 4, A] action features.
            law: [n, 3] Δ ln loss by the law.
        """
        networks = self.networks
        used, place = np.unique(which, return_inverse=True)
        start = networks.represent(_float(states[used]))  # (M, S', W)
        rows = torch.from_numpy(place)
        # Doing nothing is unrolled in the same batch, once for each state.
        end = torch.cat([start[:, rows], start], dim=1)
        nothing_done = torch.zeros(len(used), DECISIONS, len(ACTION))
        taken = torch.cat([_float(actions), nothing_done])
        for decision in range(DECISIONS):
            end = networks.step(end, taken[:, decision])
        end, nothing = end.split([len(actions), len(used)], dim=1)
        if len(used) > 1:
            start = start[:, rows]
            nothing = nothing[:, rows]
        return _collect(networks.forecast(start, end, nothing, to_units(_float(law))))

    @torch.inference_mode()
    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        """Return the states at the ends of histories, as roots of a search."""
        read = [features.read(history) for history in histories]
        states = np.zeros((len(read), len(STATE)))
        for place, (columns, context) in enumerate(read):
            states[place] = self._state(columns, context)
        latent = self.networks.represent(_float(states))
        return self._inference(latent, np.zeros(len(states), dtype=np.float32))

    @torch.inference_mode()
    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        """Return B states after one decision; latents are [B, M·W].

        See `WorldModel.recurrent_inference`.
        """
        shape = self.networks.shape
        flat = torch.from_numpy(latent)
        before = flat.view(len(latent), shape.members, shape.width).transpose(0, 1)
        vectors = torch.tensor([self._vector(action) for action in actions])
        after = self.networks.step(before, vectors.view(len(latent), len(ACTION)))
        reward = self.networks.expected(self.networks.rewards(before, after)).mean(0)
        return self._inference(after, reward.numpy())

    def _inference(self, latent: Tensor, reward: NDArray[np.float32]) -> Inference:
        value, policy = self.networks.assess(latent)
        return Inference(
            latent=latent.transpose(0, 1).flatten(1).numpy(),
            reward=reward,
            value=self.networks.expected(value).mean(0).numpy(),
            logits=policy.mean(0).numpy(),
        )

    def _state(self, columns: features.Columns, context: features.Context) -> Floats:
        """Return the features [F] of a state that the networks may see."""
        if self.blind:
            return np.full(len(STATE), np.nan)
        return features.state(columns, context)

    def _vector(self, action: NDArray[np.integer[Any]]) -> tuple[float, ...]:
        key = np.ascontiguousarray(action, dtype=np.int64).tobytes()
        if key not in self._vectors:
            self._vectors[key] = features.action(self._codec.decode(action))
        return self._vectors[key]


def paths_of(
    interventions: Sequence[Intervention | Sequence[Intervention]], decisions: int
) -> Floats:
    """Return paths [K, L]: ln of the factor on the rate now at each decision to come.

    Args:
        interventions: Entries as `Model.forecast` takes them; decisions after the end are left out.
        decisions: Number of decisions to come, L.
    """
    changes = np.zeros((len(interventions), decisions))
    for row, entry in zip(changes, interventions):
        sequence = (entry,) if isinstance(entry, Intervention) else entry[:decisions]
        row[: len(sequence)] = [math.log(one.lr_scale) for one in sequence]
    return np.cumsum(changes, axis=1)


def action_features(interventions: Sequence[Intervention | Sequence[Intervention]]) -> Floats:
    """Return action features of the next four decisions [K, 4, A]; 0 where nothing is done.

    Raises:
        UserError: an entry is neither an intervention nor a sequence of them.
    """
    if not isinstance(interventions, Sequence):
        raise UserError(
            f"expected a list of interventions, found {interventions!r:.120}; put it in brackets"
        )
    places: list[int] = []  # indices among all K · 4 decisions
    rows: list[tuple[float, ...]] = []
    for place, entry in enumerate(interventions):
        if isinstance(entry, Intervention):
            places.append(DECISIONS * place)
            rows.append(features.action(entry))
            continue
        known = isinstance(entry, Sequence) and all(isinstance(one, Intervention) for one in entry)
        if not known:
            raise UserError(
                "expected an Intervention, or a sequence of them in order, "
                f"found {entry!r:.120} at place {place}; "
                "decode action vectors with trainenv.interventions.ActionCodec"
            )
        near = entry[:DECISIONS]
        places += range(DECISIONS * place, DECISIONS * place + len(near))
        rows += [features.action(one) for one in near]
    actions = np.zeros((len(interventions) * DECISIONS, len(ACTION)))
    if rows:
        actions[places] = rows
    return actions.reshape(-1, DECISIONS, len(ACTION))


def _collect(heads: Heads) -> Predictions:
    """Average the quantiles and the probabilities of the members."""
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
    found: Predictions, nothing: NDArray[np.bool_], decision: int, limit: float
) -> list[Forecast]:
    """Convert predictions for n entries to forecasts.

    Doing nothing has Δ 0 and no disagreement, by definition.

    Args:
        found: Predictions for the entries.
        nothing: [n] True where an entry does nothing.
        decision: Steps of a decision.
        limit: Disagreement above which a forecast abstains, in nats.
    """
    kept = np.where(nothing, 0.0, 1.0)[:, None]
    horizon = _estimates(found.horizon * kept)
    annealed = _estimates(found.annealed * kept)
    final = _estimates(found.final * kept)
    recovery = _estimates(found.recovery * decision)
    hazard = found.hazard.tolist()
    divergence = found.divergence.tolist()
    instability = found.instability.tolist()
    disagreement = found.disagreement * kept[:, 0]
    spread = disagreement.tolist()
    abstain = (disagreement > limit).tolist()
    return [
        Forecast(
            horizon=horizon[row],
            annealed=annealed[row],
            final=final[row],
            hazard=tuple(hazard[row]),
            divergence=divergence[row],
            instability=instability[row],
            recovery=recovery[row],
            disagreement=spread[row],
            abstain=abstain[row],
        )
        for row in range(len(nothing))
    ]


def _estimates(quantiles: Floats) -> list[Estimate]:
    """Return mean, median and 90 % interval of quantiles [n, 5].

    The mean is that of a density which is constant between neighbouring quantiles.
    """
    mean = quantiles @ _FLAT
    columns = np.stack([mean, quantiles[:, 2], quantiles[:, 0], quantiles[:, -1]], axis=1)
    return [Estimate(*row) for row in columns.tolist()]


def _flat_weights() -> Floats:
    gaps = np.diff(LEVELS)
    weights = np.zeros(len(LEVELS))
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    weights[[0, -1]] += LEVELS[0]  # the mass of each tail is placed at its quantile
    return weights


_FLAT = _flat_weights()


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
