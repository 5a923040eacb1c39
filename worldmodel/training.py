"""Training of the networks, unrolled along the decisions of branches, with MuZero's targets.

- Forecasts: quantile loss of Δ in units, hazard of divergence, instability, time to recover
  (right-censored).
- Dynamics: the latent after each decision predicts the features measured there, and the Δ so far.
- Value: the gain over the remaining decisions (up to 4), plus the gain until the end of the run if
  the branch was trained so far, or else the value of a slowly following copy of the networks at the
  last state.
- Policy: reanalysed every few epochs with that copy (Schrittwieser et al. 2021, arXiv:2104.06294).
  The target is the improved policy softmax(logits + σ(q)) of Gumbel MuZero (Danihelka et al. 2022),
  one decision deep, over 96 actions sampled anew each time.

Each member weighs the trunks differently (Bayesian bootstrap, Rubin 1981). Many branches of one
snapshot share a fixed weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainenv.interventions import ActionCodec
from trainenv.tools import rng
from trainenv.types import DECISIONS, LOOKS, UserError
from trainenv.worldmodel import features, losses
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.networks import ACTION_SIZES, Architecture, Networks, to_units

_VISITS = 50.0  # Gumbel MuZero's σ(q) = (50 + visits) · 0.1 · q, before the first visit
# Number of sampled actions, as in Sampled MuZero (Hubert et al. 2021): using all of them would cost
# more than the training.
_SAMPLED = 96
_MOST_BRANCHES = 16  # a snapshot with more branches weighs no more than one with this number


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters of the training.

    Args:
        epochs: Passes over the branches; the learning rate falls as a cosine.
        batch: Branches in a step.
        lr, weight_decay: Hyperparameters of AdamW.
        dropout: Probability that a hidden unit is dropped.
        noise: Standard deviation of the noise added to the standardised features.
        follow: Share of the distance to the networks that the slow copy moves in a step.
        reanalyse: Epochs between updates of the targets of policy and value.
        search_weight: Weight of the losses that only a search needs, against those of forecasts.
        seed: Random seed of weights, batches, noise and sampled actions.

    Raises:
        UserError: a count is below 1 or a rate out of range.
    """

    epochs: int = 60
    batch: int = 256
    lr: float = 2e-3
    weight_decay: float = 0.02
    dropout: float = 0.0
    noise: float = 0.3
    follow: float = 0.02
    reanalyse: int = 5
    search_weight: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "reanalyse"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, found {getattr(self, name)!r}")
        if not 0 < self.lr < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                "lr must be above 0 and below 1, and dropout at least 0 and below 1, "
                f"found {self.lr!r} and {self.dropout!r}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tensors:
    """Columns of `Examples` as float32 tensors, with Δ in units."""

    states: Tensor
    snapshot: Tensor
    after: Tensor
    actions: Tensor
    law: Tensor
    outcome: Tensor
    looks: Tensor
    fall: Tensor
    to_end: Tensor
    diverged: Tensor
    fired: Tensor
    recovery: Tensor
    recovered: Tensor
    weights: Tensor  # [M, n]


def fit(
    examples: Examples,
    training: Training | None = None,
    shape: Architecture | None = None,
    *,
    start: Networks | None = None,
    watch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Networks:
    """Train networks on branches, on one thread: the same arguments give the same weights.

    Args:
        examples: Branches to learn from.
        training: Hyperparameters of the training.
        shape: Sizes of the networks; those of `start`, where it is given.
        start: Networks to start from; they are not changed, and their standardisation is kept.
        watch: Function called after each epoch with its number and mean loss.

    Raises:
        UserError: no branch tried an intervention.
    """
    training = training or Training()
    if not examples.candidate.any():
        raise UserError(
            "expected branches that tried something to learn from, found none; "
            "build a data set first"
        )
    generator = torch.Generator().manual_seed(training.seed)
    with rng.seeded(training.seed), _one_thread():
        if start is None:
            networks = Networks(shape or Architecture(), dropout=training.dropout)
            networks.standardise(*_moments(examples))
        else:
            # The networks of a `Model` are frozen.
            networks = copy.deepcopy(start).requires_grad_(True)
        data = _tensors(examples, networks.shape.members, generator)
        slow = copy.deepcopy(networks).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            networks.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
        )
        steps = max(1, math.ceil(len(examples) / training.batch))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs * steps)
        networks.train()
        for epoch in range(training.epochs):
            if epoch % training.reanalyse == 0:
                policies, reached = _reanalyse(slow, data, generator)
            order = torch.randperm(len(examples), generator=generator)
            total = 0.0
            for rows in order.split(training.batch):
                loss = _loss(networks, data, rows, policies, reached, training)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(networks.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                _follow(slow, networks, training.follow)
                total += float(loss.detach()) * len(rows)
            watch(epoch, total / len(examples))
    return networks.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: the number of threads decides the order of sums, and so the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _loss(
    networks: Networks,
    data: _Tensors,
    rows: Tensor,
    policies: Tensor,
    reached: Tensor,
    training: Training,
) -> Tensor:
    """Return the loss of a batch, weighted over its branches and summed over members.

    Args:
        networks: Networks to train.
        data: All branches.
        rows: [B] branches of the batch.
        policies: [S, 18] target policy of each snapshot.
        reached: [n] value at the last state of each branch, in nats; NaN where not known.
        training: Hyperparameters of the training.
    """
    actions = data.actions[rows]
    law = data.law[rows]
    state = data.states[data.snapshot[rows]]  # (B, F)
    noisy = state + training.noise * networks.deviation * torch.randn_like(state)
    start = networks.represent(noisy)
    unrolled = networks.unroll(start, actions)
    nothing = networks.unroll(start, torch.zeros_like(actions)).latents[:, :, -1]
    heads = networks.forecast(start, unrolled.latents[:, :, -1], nothing, law)
    latents = unrolled.latents.flatten(1, 2)  # (M, 5·B, W)
    value, policy = networks.assess(latents)
    values = value.unflatten(1, (len(rows), -1))  # (M, B, 5, bins)
    policy = policy.unflatten(1, (len(rows), -1))[:, :, 0]  # (M, B, 18)
    measured = networks.standard(torch.cat([state[:, None], data.after[rows]], dim=1))  # (B, 5, F)
    to_end = data.to_end[rows]
    returns = _returns(data.fall[rows], torch.where(torch.isfinite(to_end), to_end, reached[rows]))
    fired = data.fired[rows].expand_as(heads.instability)
    instability = F.binary_cross_entropy_with_logits(heads.instability, fired, reduction="none")
    decoded = networks.decoder(latents).unflatten(1, (len(rows), -1))  # (M, B, 5, F)
    forecast = (
        losses.pinball(heads.quantiles, data.outcome[rows])
        + 0.1 * losses.curve(heads.looks, data.looks[rows])
        + 0.2 * losses.survival(heads.hazard, data.diverged[rows])
        + 0.1 * instability
        + 0.05 * losses.censored(heads.recovery, data.recovery[rows], data.recovered[rows])
        + 0.1 * losses.consistency(decoded, measured)
    )
    search = (
        losses.categorical(unrolled.rewards, data.fall[rows], networks.bins)
        + 0.25 * losses.categorical(values, returns, networks.bins)
        + 0.25 * losses.policy(policy, policies[data.snapshot[rows]])
    )
    weights = data.weights[:, rows]
    each = (forecast + training.search_weight * search) * weights  # (M, B)
    total: Tensor = each.sum() / weights.sum().clamp(min=1e-6)
    return total * networks.shape.members


def _returns(fall: Tensor, beyond: Tensor) -> Tensor:
    """Return the undiscounted gain from the start and from the end of each decision on, [B, 5].

    Args:
        fall: [B, 4] fall of ln loss over each decision, in nats.
        beyond: [B] fall of ln loss after the last decision, in nats.
    """
    steps = torch.cat([fall, beyond[:, None]], dim=1)
    return steps.flip(1).cumsum(1).flip(1)


@torch.no_grad()
def _reanalyse(slow: Networks, data: _Tensors, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Compute targets with the slow copy of the networks.

    Returns:
        [S, 18] improved policy of each snapshot, and [n] value in nats at the last state of each
        branch; NaN after a non-finite loss.
    """
    vectors, table = _sampled_actions(generator)
    policies = torch.cat(
        [improved(slow, states, vectors, table) for states in data.states.split(64)]
    )
    ends = data.after[:, -1]
    values = []
    for chunk in ends.split(4096):
        logits, _ = slow.assess(slow.represent(chunk))
        values.append(slow.expected(logits).mean(0))
    reached = torch.cat(values)
    unknown = ~torch.isfinite(ends).any(-1)
    return policies, torch.where(unknown, torch.nan, reached)


@torch.no_grad()
def improved(networks: Networks, states: Tensor, vectors: Tensor, table: Tensor) -> Tensor:
    """Return the improved policy one decision deep, as the marginal of each part, [S, 18].

    It is softmax(logits + σ(q)) with q = reward + value, rescaled to [0, 1] over the actions of a
    state; logits and q are means over the members.

    Args:
        networks: Networks that predict rewards, values and policies.
        states: [S, F] features.
        vectors: [A, 6] action vectors to choose among.
        table: [A, 9] features of these actions.
    """
    count = len(states)
    actions = len(table)
    latent = networks.represent(states)  # (M, S, W)
    _, parts = networks.assess(latent)
    logits = _joint(parts, vectors)  # (M, S, A)
    wide = latent[:, :, None].expand(-1, -1, actions, -1).reshape(len(latent), count * actions, -1)
    after = networks.step(wide, table.repeat(count, 1))
    reward = networks.expected(networks.rewards(wide, after))
    value = networks.expected(networks.assess(after)[0])
    q = (reward + value).view(len(latent), count, actions).mean(0)  # (S, A)
    low = q.min(1, keepdim=True).values
    high = q.max(1, keepdim=True).values
    sigma = _VISITS * 0.1 * (q - low) / (high - low).clamp(min=1e-6)
    joint = torch.softmax(logits.mean(0) + sigma, dim=-1)
    margins = [
        torch.zeros(count, size).index_add_(1, vectors[:, place], joint)
        for place, size in enumerate(ACTION_SIZES)
    ]
    return torch.cat(margins, dim=1)


def _joint(parts: Tensor, vectors: Tensor) -> Tensor:
    """Return log-probabilities [M, S, A] of actions from the logits [M, S, 18] of their parts."""
    logs = [torch.log_softmax(part, dim=-1) for part in parts.split(ACTION_SIZES, dim=-1)]
    return torch.stack([log[..., vectors[:, place]] for place, log in enumerate(logs)]).sum(0)


def _sampled_actions(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample distinct actions, doing nothing first: vectors [A, 6] and features [A, 9]."""
    vectors, table = _table()
    others = 1 + torch.randperm(len(vectors) - 1, generator=generator)[: _SAMPLED - 1]
    chosen = torch.cat([torch.zeros(1, dtype=torch.int64), others])
    return vectors[chosen], table[chosen]


@cache
def _table() -> tuple[Tensor, Tensor]:
    """Return all action vectors [A, 6] and their features [A, 9]."""
    codec = ActionCodec()
    vectors = list(product(*map(range, ACTION_SIZES)))
    table = [features.action(codec.decode(vector)) for vector in vectors]
    return torch.tensor(vectors), torch.tensor(table, dtype=torch.float32)


def _follow(slow: Networks, networks: Networks, share: float) -> None:
    torch._foreach_lerp_(
        list(slow.parameters()), [p.detach() for p in networks.parameters()], share
    )


def _moments(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature over the snapshots of the branches.

    A feature that was never measured has mean 0 and deviation 1.
    """
    used = examples.states[np.unique(examples.snapshot)]
    known = np.isfinite(used).any(0)
    mean = np.zeros(used.shape[1])
    deviation = np.ones(used.shape[1])
    mean[known] = np.nanmean(used[:, known], axis=0)
    deviation[known] = np.maximum(np.nanstd(used[:, known], axis=0), 1e-3)
    return _float(mean), _float(deviation)


def _float(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def _tensors(examples: Examples, members: int, generator: torch.Generator) -> _Tensors:
    outcome = np.stack([examples.horizon, examples.annealed, examples.final], axis=1)
    interval = np.ceil(examples.recovery * LOOKS / DECISIONS - 1e-9)
    place = np.where(examples.recovered, interval, LOOKS)
    place[np.isnan(examples.recovery)] = -1  # not watched: the time may be any
    per_snapshot = np.bincount(examples.snapshot, minlength=len(examples.states))
    mass = np.minimum(1.0, _MOST_BRANCHES / per_snapshot[examples.snapshot])
    trunks = torch.empty(members, len(examples.trunks)).exponential_(generator=generator)
    return _Tensors(
        states=_float(examples.states),
        snapshot=torch.tensor(examples.snapshot),
        after=_float(examples.after),
        actions=_float(examples.actions),
        law=to_units(_float(examples.law)),
        outcome=to_units(_float(outcome)),
        looks=to_units(_float(examples.looks[:, 1::2])),
        fall=_float(examples.fall),
        to_end=_float(examples.to_end),
        diverged=torch.tensor(examples.diverged),
        fired=_float(examples.fired),
        recovery=torch.tensor(place.astype(np.int64)),
        recovered=torch.tensor(examples.recovered),
        weights=trunks[:, torch.tensor(examples.trunk)] * _float(mass),
    )
