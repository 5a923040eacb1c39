"""An ensemble of networks with the parts of MuZero: representation, dynamics and prediction.

Schrittwieser et al. 2020, arXiv:1911.08265.

    z_0              = representation(features)
    z_{d+1}, reward  = dynamics(z_d, action_d)
    policy, value    = search heads(z_d)
    Δ quantiles, hazard, instability, recovery = forecast heads(z_4, ẑ_4, z_0, law)

ẑ_4 is the latent after four decisions of doing nothing. The forecast is the difference between two
futures; where both are the same it is 0 by construction. The Δ of the anchored multi-power law
enters twice: as an input and, through a gate, as the value that the median starts from.

The M members of the ensemble are computed together in batched matrix products; M is the first axis
of every shape. Members share their inputs and nothing else.

Δ is expressed in *units*: asinh(Δ / 0.01), linear below 1 % and logarithmic above. So a divergence
does not dominate the loss.

Deviations from MuZero: layers are dense, because there are no images; latents are layer-normalised
instead of scaled to [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.interventions import ActionCodec
from trainenv.types import DECISIONS, LOOKS, UserError
from trainenv.worldmodel.features import ACTION, STATE

UNIT = 0.01  # nats; asinh(Δ / UNIT) is linear below it and logarithmic above
TARGETS = 3  # horizon, annealed, final
QUANTILES = 5
RECOVERY = LOOKS + 2  # recovered at the start, by each evaluation point, or later
ACTION_SIZES = ActionCodec().sizes  # number of values of each part of an action; they sum to 18
BINS = torch.linspace(-10, 10, 41)  # centres of the bins of rescaled rewards and values
REWARD_SCALE = 100.0  # rewards are about 1e-3 nats: unscaled, all would fall into one bin

Dynamics = Literal["mlp", "recurrent"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of the networks, saved in the model's card.

    Args:
        members: Number of members of the ensemble.
        width: Size of a latent.
        hidden: Size of the hidden layers.
        dynamics: Kind of the dynamics: "mlp" is a residual two-layer perceptron, "recurrent" a
            gated recurrent unit (Cho et al. 2014), the form that learned optimizers take
            (Andrychowicz et al. 2016).

    Raises:
        UserError: a size is below 1 or the dynamics is unknown.
    """

    members: int = 5
    width: int = 48
    hidden: int = 64
    dynamics: Dynamics = "mlp"

    def __post_init__(self) -> None:
        for name in ("members", "width", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, found {getattr(self, name)!r}")
        if self.dynamics not in get_args(Dynamics):
            raise UserError(
                f"dynamics must be one of {', '.join(get_args(Dynamics))}, found {self.dynamics!r}"
            )


class Unrolled(NamedTuple):
    """Latents and rewards along B sequences of four decisions.

    Attributes:
        latents: [M, B, 5, W] latents, the start first.
        rewards: [M, B, 4, bins] logits of the reward of each decision.
    """

    latents: Tensor
    rewards: Tensor


class Heads(NamedTuple):
    """Forecasts of B sequences by each of the M members.

    Attributes:
        quantiles: [M, B, 3, 5] quantiles of Δ in units at `LEVELS`, rising; the targets are
            horizon, annealed and final.
        looks: [M, B, 4] median Δ in units after each decision.
        hazard: [M, B, 4] logits of the hazard of divergence in each decision.
        instability: [M, B] logits of the probability that the uncertainty index fires.
        recovery: [M, B, 10] logits of the time until the loss has recovered: at the start, by each
            evaluation point, or later.
    """

    quantiles: Tensor
    looks: Tensor
    hazard: Tensor
    instability: Tensor
    recovery: Tensor


class Linear(nn.Module):
    """One linear layer for each member: [M, B, inputs] → [M, B, outputs]."""

    def __init__(self, members: int, inputs: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, inputs, outputs) * gain / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Perceptron(nn.Module):
    """Two linear layers with a SiLU between them: [M, B, inputs] → [M, B, outputs]."""

    def __init__(
        self,
        members: int,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        gain: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = Linear(members, inputs, hidden)
        self.second = Linear(members, hidden, outputs, gain=gain)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.first(x))
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        outputs: Tensor = self.second(hidden)
        return outputs


class SharedPerceptron(nn.Module):
    """A perceptron of two inputs, the second of which all rows may share.

    [M, B, own] and [M, 1 or B, shared] → [M, B, outputs].
    """

    def __init__(
        self,
        members: int,
        own: int,
        shared: int,
        hidden: int,
        outputs: int,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.own = Linear(members, own, hidden)
        self.shared = Linear(members, shared, hidden)
        self.second = Linear(members, hidden, outputs, gain=0.1)
        self.dropout = dropout

    def forward(self, own: Tensor | None, shared: Tensor) -> Tensor:
        """Return the outputs; None for `own` has the same result as zeros."""
        from_shared = self.shared(shared)
        from_own = self.own.bias
        if own is not None:
            from_own = self.own(own)
        hidden = F.silu(from_shared + from_own)
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        outputs: Tensor = self.second(hidden)
        return outputs


class GatedUnit(nn.Module):
    """A gated recurrent unit for each member; its state is the latent, its input the action."""

    def __init__(self, members: int, inputs: int, width: int) -> None:
        super().__init__()
        self.gates = Linear(members, inputs + width, 2 * width)
        self.new = Linear(members, inputs + width, width)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gates(torch.cat([latent, action], dim=-1)))
        update, reset = gates.chunk(2, dim=-1)
        new = torch.tanh(self.new(torch.cat([reset * latent, action], dim=-1)))
        return latent + update * (new - latent)


class Networks(nn.Module):
    """All networks of the ensemble. They standardise their inputs with the values of `standardise`.

    Args:
        shape: Sizes of the networks.
        dropout: Probability that a hidden unit is dropped while training.
    """

    mean: Tensor
    deviation: Tensor
    bins: Tensor

    def __init__(self, shape: Architecture, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        members = shape.members
        width = shape.width
        hidden = shape.hidden
        self.representation = Perceptron(members, len(STATE), hidden, width, dropout=dropout)
        if shape.dynamics == "mlp":
            self.dynamics: nn.Module = Perceptron(
                members, width + len(ACTION), hidden, width, gain=0.5, dropout=dropout
            )
        else:
            self.dynamics = GatedUnit(members, len(ACTION), width)
        self.reward = Perceptron(members, 2 * width, hidden, len(BINS), gain=0.1)
        self.search = Perceptron(members, width, hidden, len(BINS) + sum(ACTION_SIZES), gain=0.1)
        self.effect = SharedPerceptron(
            members, width + TARGETS, width, hidden, TARGETS + DECISIONS, dropout=dropout
        )
        self.spread = SharedPerceptron(
            members, width + TARGETS, width, hidden, TARGETS * (QUANTILES - 1)
        )
        self.gate = Linear(members, width, TARGETS, gain=0.1)
        self.risk = SharedPerceptron(members, width, width, hidden, DECISIONS + 1 + RECOVERY)
        self.decoder = Linear(members, width, len(STATE))
        self.register_buffer("mean", torch.zeros(len(STATE)))
        self.register_buffer("deviation", torch.ones(len(STATE)))
        self.register_buffer("bins", BINS.clone(), persistent=False)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the mean and standard deviation of each feature, [F] each."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def standard(self, features: Tensor) -> Tensor:
        """Return features as z-scores within ±5; NaN stays NaN."""
        return ((features - self.mean) / self.deviation).clamp(-5, 5)

    def represent(self, features: Tensor) -> Tensor:
        """Return latents [M, B, W] of features [B, F]; NaN means not measured."""
        inputs = self.standard(features).nan_to_num(0.0).expand(self.shape.members, -1, -1)
        return _norm(self.representation(inputs))

    def step(self, latent: Tensor, action: Tensor) -> Tensor:
        """Return latents [M, B, W] after a decision with action features [B, A] or [M, B, A]."""
        action = action.expand(self.shape.members, -1, -1)
        if isinstance(self.dynamics, GatedUnit):
            return _norm(self.dynamics(latent, action))
        return _norm(latent + self.dynamics(torch.cat([latent, action], dim=-1)))

    def unroll(self, latent: Tensor, actions: Tensor) -> Unrolled:
        """Apply the dynamics to latents [M, B, W] along action features [B, 4, A]."""
        latents = [latent]
        for decision in range(actions.shape[1]):
            latents.append(self.step(latents[-1], actions[:, decision]))
        stacked = torch.stack(latents, dim=2)  # (M, B, 5, W)
        return Unrolled(stacked, self.rewards(stacked[:, :, :-1], stacked[:, :, 1:]))

    def rewards(self, before: Tensor, after: Tensor) -> Tensor:
        """Return logits over `BINS` of the rescaled reward between latents [M, …, W]."""
        flat = torch.cat([before, after], dim=-1)
        logits: Tensor = self.reward(flat.flatten(1, -2))
        return logits.view(*flat.shape[:-1], len(BINS))

    def assess(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of value and policy at latents [M, B, W].

        Returns:
            [M, B, bins] logits over `BINS` of the rescaled value, and [M, B, 18] logits of the
            policy, part by part.
        """
        value, policy = self.search(latent).split([len(BINS), sum(ACTION_SIZES)], dim=-1)
        return value, policy

    def forecast(self, start: Tensor, end: Tensor, nothing: Tensor, law: Tensor) -> Heads:
        """Forecast B sequences of decisions against doing nothing.

        Args:
            start: [M, B, W] latents before the sequences; [M, 1, W] if all start from one state.
            end: [M, B, W] latents after the sequences.
            nothing: Latents after as many decisions of doing nothing, in the shape of `start`.
            law: [B, 3] Δ by the law, in units.
        """
        law = law.expand(self.shape.members, -1, -1)
        own = torch.cat([end - nothing, law], dim=-1)
        effect = self.effect(own, start) - self.effect(None, start)  # 0 where nothing is done
        median = effect[..., :TARGETS] + torch.sigmoid(self.gate(start)) * law  # (M, B, 3)
        gaps = F.softplus(self.spread(own, start) - 1.0).unflatten(-1, (TARGETS, QUANTILES - 1))
        below = gaps[..., :2]
        above = gaps[..., 2:]
        quantiles = torch.stack(
            [
                median - below.sum(-1),
                median - below[..., 1],
                median,
                median + above[..., 0],
                median + above.sum(-1),
            ],
            dim=-1,
        )
        hazard, instability, recovery = self.risk(end, start).split(
            [DECISIONS, 1, RECOVERY], dim=-1
        )
        return Heads(quantiles, effect[..., TARGETS:], hazard, instability[..., 0], recovery)

    def expected(self, logits: Tensor) -> Tensor:
        """Return the expected reward or value in nats of logits over `BINS`."""
        return unscale((torch.softmax(logits, dim=-1) * self.bins).sum(-1)) / REWARD_SCALE


def to_units(delta: Tensor) -> Tensor:
    """Convert Δ from nats to units; `calibration.nats` is the inverse."""
    return torch.asinh(delta / UNIT)


def rescale(x: Tensor) -> Tensor:
    """Apply MuZero's h(x) = sign(x)(√(|x| + 1) − 1) + 0.001x (Pohlen et al. 2018)."""
    return torch.sign(x) * (torch.sqrt(x.abs() + 1) - 1) + 0.001 * x


def unscale(y: Tensor) -> Tensor:
    """Apply the inverse of `rescale`."""
    root = (torch.sqrt(1 + 0.004 * (y.abs() + 1.001)) - 1) / 0.002
    return torch.sign(y) * (root.square() - 1)


def two_hot(nats: Tensor, bins: Tensor) -> Tensor:
    """Encode rewards or values [...] in nats as weights of their two nearest bins, [..., bins]."""
    y = rescale(nats * REWARD_SCALE).clamp(float(bins[0]), float(bins[-1]))
    place = (y - bins[0]) / (bins[1] - bins[0])
    low = place.floor().clamp(0, len(bins) - 2)
    share = (place - low).unsqueeze(-1)
    index = low.long().unsqueeze(-1)
    weights = torch.zeros(*nats.shape, len(bins), device=nats.device)
    weights.scatter_(-1, index, 1 - share)
    return weights.scatter_(-1, index + 1, share)


def _norm(latent: Tensor) -> Tensor:
    return F.layer_norm(latent, latent.shape[-1:])
