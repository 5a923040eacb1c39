"""The networks, shaped as MuZero's (Schrittwieser et al.

2020, arXiv:1911.08265): representation, dynamics, prediction.

    z_0 = representation(features)                       z_{d+1}, reward = dynamics(z_d, action_d)
    policy, value = search heads(z_d)                    Δ quantiles, hazard, … = forecast
    heads(z_4, ẑ_4, z_0, law)

ẑ_4 is where doing nothing leads: what is forecast is the difference of two futures, and where the
two are one it is 0 by construction. The anchored multi-power law's Δ enters twice, as an input and,
through a gate, as what the median starts from.

Everything is an ensemble: M members side by side in batched matrix products, [M, …] first in every
shape. They share inputs and nothing else. Δ are in *units*: asinh(Δ / 0.01), linear below 1 % and
logarithmic above, so that a divergence does not drown the rest. Deviations from MuZero: no images,
so dense layers; latents are layer-normalised instead of scaled to [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.types import UserError
from trainenv.worldmodel.features import ACTION, DECISIONS, STATE

UNIT = 0.01  # nats: what is small and what is large
TARGETS = 3  # horizon, annealed, final
QUANTILES = 5
LOOKS = 8
RECOVERY = LOOKS + 2  # at once, after each look, later than all
POLICY = (4, 3, 5, 2, 2, 2)  # sizes of the parts of an action
BINS = torch.linspace(-10, 10, 41)  # of rescaled rewards and values
REWARD_SCALE = 100.0  # rewards are some 1e-3 nats: unscaled, all would fall into one bin

Dynamics = Literal["mlp", "recurrent"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes. Saved beside the weights.

    Args:
        members: of the ensemble.
        width: of a latent.
        hidden: of the layer between.
        dynamics: a residual two-layer perceptron, or a gated recurrent unit (Cho et al. 2014) that
            sees the run as a learned optimizer sees its problem (Andrychowicz et al. 2016).

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
    """Latents and rewards along sequences of decisions.

    Attributes:
        latents: [M, B, 5, W], the start first.
        rewards: [M, B, 4, bins] logits.
    """

    latents: Tensor
    rewards: Tensor


class Heads(NamedTuple):
    """What is forecast of B sequences, by each member.

    Attributes:
        quantiles: [M, B, 3, 5] Δ in units at `LEVELS`, rising: horizon, annealed, final.
        looks: [M, B, 4] median Δ in units after each decision.
        hazard: [M, B, 4] logits.
        instability: [M, B] logits.
        recovery: [M, B, 10] logits over when the loss is back: at once, by each look, later.
    """

    quantiles: Tensor
    looks: Tensor
    hazard: Tensor
    instability: Tensor
    recovery: Tensor


class Linear(nn.Module):
    """M linear layers side by side: [M, B, inputs] → [M, B, outputs]."""

    def __init__(self, members: int, inputs: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, inputs, outputs) * gain / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Perceptron(nn.Module):
    """Two layers with a SiLU between."""

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


class Judge(nn.Module):
    """A perceptron of two inputs, the second of which many rows of the first may share: [M, B, own] and [M, 1 or B, shared]."""

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
        """None stands for an `own` of zeros."""
        before = self.shared(shared) + (self.own.bias if own is None else self.own(own))
        hidden = F.silu(before)
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        outputs: Tensor = self.second(hidden)
        return outputs


class Gated(nn.Module):
    """A gated recurrent unit, M side by side: the state is the latent, the input the action."""

    def __init__(self, members: int, inputs: int, width: int) -> None:
        super().__init__()
        self.gates = Linear(members, inputs + width, 2 * width)
        self.new = Linear(members, inputs + width, width)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        update, reset = torch.sigmoid(self.gates(torch.cat([latent, action], dim=-1))).chunk(
            2, dim=-1
        )
        new = torch.tanh(self.new(torch.cat([reset * latent, action], dim=-1)))
        return latent + update * (new - latent)


class Networks(nn.Module):
    """All of them. Inputs are standardised here, with what `standardise` was told.

    Args:
        shape: sizes.
        dropout: of the hidden layers while training.
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
            self.dynamics = Gated(members, len(ACTION), width)
        self.reward = Perceptron(members, 2 * width, hidden, len(BINS), gain=0.1)
        self.search = Perceptron(members, width, hidden, len(BINS) + sum(POLICY), gain=0.1)
        self.effect = Judge(
            members, width + TARGETS, width, hidden, TARGETS + DECISIONS, dropout=dropout
        )
        self.spread = Judge(members, width + TARGETS, width, hidden, TARGETS * (QUANTILES - 1))
        self.gate = Linear(members, width, TARGETS, gain=0.1)
        self.risk = Judge(members, width, width, hidden, DECISIONS + 1 + RECOVERY)
        self.decoder = Linear(members, width, len(STATE))
        self.register_buffer("mean", torch.zeros(len(STATE)))
        self.register_buffer("deviation", torch.ones(len(STATE)))
        self.register_buffer("bins", BINS.clone(), persistent=False)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Remember the mean and standard deviation of each feature, [F]."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def standard(self, features: Tensor) -> Tensor:
        """z-scores within ±5; NaN stays NaN."""
        return ((features - self.mean) / self.deviation).clamp(-5, 5)

    def represent(self, features: Tensor) -> Tensor:
        """[B, F] features, NaN where unmeasured → latents [M, B, W]."""
        inputs = self.standard(features).nan_to_num(0.0).expand(self.shape.members, -1, -1)
        return _norm(self.representation(inputs))

    def step(self, latent: Tensor, action: Tensor) -> Tensor:
        """Latents [M, B, W] after a decision with the action features [B, A] or [M, B, A]."""
        action = action.expand(self.shape.members, -1, -1)
        if isinstance(self.dynamics, Gated):
            return _norm(self.dynamics(latent, action))
        return _norm(latent + self.dynamics(torch.cat([latent, action], dim=-1)))

    def unroll(self, latent: Tensor, actions: Tensor) -> Unrolled:
        """From latents [M, B, W] along action features [B, 4, A]."""
        latents = [latent]
        for decision in range(actions.shape[1]):
            latents.append(self.step(latents[-1], actions[:, decision]))
        stacked = torch.stack(latents, dim=2)  # (M, B, 5, W)
        return Unrolled(stacked, self.rewards(stacked[:, :, :-1], stacked[:, :, 1:]))

    def rewards(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits over `BINS` of the rescaled reward between latents [M, …, W]."""
        flat = torch.cat([before, after], dim=-1)
        logits: Tensor = self.reward(flat.flatten(1, -2))
        return logits.view(*flat.shape[:-1], len(BINS))

    def judge(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Of latents [M, B, W]: logits over `BINS` of the rescaled value, and those of the policy's parts, [M, B, 18]."""
        value, policy = self.search(latent).split([len(BINS), sum(POLICY)], dim=-1)
        return value, policy

    def forecast(self, start: Tensor, end: Tensor, nothing: Tensor, law: Tensor) -> Heads:
        """What comes of sequences that lead from `start` to `end`, where doing nothing would lead to `nothing`; [M, B, W] each.

        Args:
            start: latents of the state, [M, 1, W] where all sequences start from one.
            end: those after the sequence.
            nothing: those after as many decisions of doing nothing, as `start`.
            law: [B, 3] the law's Δ in units.
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
        """Rewards or values in nats of logits over `BINS`."""
        return unscale((torch.softmax(logits, dim=-1) * self.bins).sum(-1)) / REWARD_SCALE


def to_units(delta: Tensor) -> Tensor:
    """Δ in nats → units."""
    return torch.asinh(delta / UNIT)


def to_nats(units: Tensor) -> Tensor:
    """Units → Δ in nats."""
    return UNIT * torch.sinh(units)


def rescale(x: Tensor) -> Tensor:
    """h(x) = sign(x)(√(|x| + 1) − 1) + 0.001x (Pohlen et al. 2018, as MuZero has it)."""
    return torch.sign(x) * (torch.sqrt(x.abs() + 1) - 1) + 0.001 * x


def unscale(y: Tensor) -> Tensor:
    """The inverse of `rescale`."""
    root = (torch.sqrt(1 + 0.004 * (y.abs() + 1.001)) - 1) / 0.002
    return torch.sign(y) * (root.square() - 1)


def two_hot(nats: Tensor, bins: Tensor) -> Tensor:
    """Rewards or values in nats, [...], as weights of the two bins beside each, [..., bins]."""
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
