"""Train the networks: unrolled along the decisions of branches, with values and policies as MuZero makes their targets.

- Forecasts: quantile loss of Δ in units, hazard of divergence, instability, time to recover (right-censored).
- Dynamics: each latent on the way is to tell the features that were measured there, and the Δ so far.
- Value: what was gained from each decision on, n steps (up to 4), then the end of the run where the branch went on to it, else
  the value of a slowly following copy of the networks at the state that was reached.
- Policy: reanalysed (Schrittwieser et al. 2021, arXiv:2104.06294) every few epochs with that copy: the improved policy
  softmax(logits + σ(q)) of Gumbel MuZero (Danihelka et al. 2022), one decision deep, over 96
  actions drawn anew each time.

Each member has its own weights of trunks (Bayesian bootstrap, Rubin 1981), each trunk's branches
the weight of its snapshots.
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
from torch import Tensor

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.tools import rng
from trainenv.types import UserError
from trainenv.worldmodel import features, losses
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.networks import LOOKS, POLICY, Architecture, Networks, to_units

_VISITS = 50.0  # σ(q) = (50 + visits) · 0.1 · q in Gumbel MuZero, at no visits yet
_DISCOUNT = 1.0
# actions, as in Sampled MuZero (Hubert et al. 2021): all of them would cost more than the training
_SAMPLED = 96
_BUSY = 16  # branches of a snapshot beyond which they share its weight


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the networks are trained.

    Args:
        epochs: passes over the branches; the learning rate falls as a cosine.
        batch: branches of a step.
        lr, weight_decay: of AdamW.
        dropout: of the hidden layers.
        noise: standard deviation of noise on the standardised features.
        follow: how much of the way the slow copy goes towards the networks, a step.
        reanalyse: epochs between refreshes of the policy's and the value's targets.
        search_weight: of the losses that only a search needs, beside those of the forecasts.
        seed: of everything that is drawn.

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
                f"lr must be in (0, 1) and dropout in [0, 1), found {self.lr!r} and {self.dropout!r}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tensors:
    """Examples as float32 tensors, Δ in units; see `Examples`."""

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
    how: Training | None = None,
    shape: Architecture | None = None,
    *,
    start: Networks | None = None,
    watch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Networks:
    """Networks trained on branches, on one thread: the same arguments give the same weights.

    Args:
        examples: to learn from.
        how: hyperparameters.
        shape: of the networks; that of `start` where it is given.
        start: networks to go on from; they are left as they are, and their standardisation is kept.
        watch: told of each epoch and its mean loss.

    Raises:
        UserError: there are no branches that tried something.
    """
    how = how or Training()
    if not examples.candidate.any():
        raise UserError(
            "expected branches that tried something to learn from, found none; build a data set first"
        )
    generator = torch.Generator().manual_seed(how.seed)
    with rng.seeded(how.seed), _one_thread():
        if start is None:
            networks = Networks(shape or Architecture(), dropout=how.dropout)
            networks.standardise(*_moments(examples))
        else:
            networks = copy.deepcopy(start).requires_grad_(True)  # those of a `Model` are frozen
        data = _tensors(examples, networks.shape.members, generator)
        slow = copy.deepcopy(networks).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            networks.parameters(), lr=how.lr, weight_decay=how.weight_decay, fused=True
        )
        steps = max(1, math.ceil(len(examples) / how.batch))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs * steps)
        networks.train()
        for epoch in range(how.epochs):
            if epoch % how.reanalyse == 0:
                policies, reached = _reanalyse(slow, data, generator)
            order = torch.randperm(len(examples), generator=generator)
            total = 0.0
            for rows in order.split(how.batch):
                loss = _loss(networks, data, rows, policies, reached, how)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(networks.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                _follow(slow, networks, how.follow)
                total += float(loss.detach()) * len(rows)
            watch(epoch, total / len(examples))
    return networks.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """The number of threads decides the order of sums, and with it the bits."""
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
    how: Training,
) -> Tensor:
    actions = data.actions[rows]
    law = data.law[rows]
    state = data.states[data.snapshot[rows]]  # (B, F)
    noisy = state + how.noise * networks.deviation * torch.randn_like(state)
    start = networks.represent(noisy)
    unrolled = networks.unroll(start, actions)
    nothing = networks.unroll(start, torch.zeros_like(actions)).latents[:, :, -1]
    heads = networks.forecast(start, unrolled.latents[:, :, -1], nothing, law)
    value, policy = networks.judge(unrolled.latents.flatten(1, 2))
    values = value.unflatten(1, (len(rows), -1))  # (M, B, 5, bins)
    policy = policy.unflatten(1, (len(rows), -1))[:, :, 0]  # (M, B, 18)
    measured = networks.standard(torch.cat([state[:, None], data.after[rows]], dim=1))  # (B, 5, F)
    returns = _returns(
        data.fall[rows],
        torch.where(torch.isfinite(data.to_end[rows]), data.to_end[rows], reached[rows]),
    )
    forecast = (
        losses.pinball(heads.quantiles, data.outcome[rows])
        + 0.1 * losses.curve(heads.looks, data.looks[rows])
        + 0.2 * losses.survival(heads.hazard, data.diverged[rows])
        + 0.1
        * torch.nn.functional.binary_cross_entropy_with_logits(
            heads.instability, data.fired[rows].expand_as(heads.instability), reduction="none"
        )
        + 0.05 * losses.censored(heads.recovery, data.recovery[rows], data.recovered[rows])
        + 0.1
        * losses.consistency(
            networks.decoder(unrolled.latents.flatten(1, 2)).unflatten(1, (len(rows), -1)), measured
        )
    )
    search = (
        losses.categorical(unrolled.rewards, data.fall[rows], networks.bins)
        + 0.25 * losses.categorical(values, returns, networks.bins)
        + 0.25 * losses.policy(policy, policies[data.snapshot[rows]])
    )
    weights = data.weights[:, rows]
    total: Tensor = ((forecast + how.search_weight * search) * weights).sum() / weights.sum().clamp(
        min=1e-6
    )
    return total * networks.shape.members


def _returns(fall: Tensor, beyond: Tensor) -> Tensor:
    """What is gained from each of five moments on, [B, 5], of falls [B, 4] and what comes after, [B], in nats."""
    steps = torch.cat([fall, beyond[:, None]], dim=1)
    return steps.flip(1).cumsum(1).flip(1) * _DISCOUNT


@torch.no_grad()
def _reanalyse(slow: Networks, data: _Tensors, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Targets by the slow copy: the improved policy of each snapshot, [S, 18], and the value where each branch ended, [n]."""
    vectors, table = actions_drawn(generator)
    policies = torch.cat(
        [improved(slow, states, vectors, table) for states in data.states.split(64)]
    )
    ends = data.after[:, -1]
    values = []
    for chunk in ends.split(4096):
        logits, _ = slow.judge(slow.represent(chunk))
        values.append(slow.expected(logits).mean(0))
    reached = torch.cat(values)
    lost = ~torch.isfinite(ends).any(-1)
    return policies, torch.where(lost, torch.nan, reached)


@torch.no_grad()
def improved(networks: Networks, states: Tensor, vectors: Tensor, table: Tensor) -> Tensor:
    """The improved policy one decision deep, mean over members, each part's margin: [S, 18].

    softmax(logits + σ(q)) with q = reward + value, rescaled to [0, 1] over the actions of a state.

    Args:
        networks: that judge.
        states: [S, F] features.
        vectors: [A, 6] action vectors to choose among.
        table: [A, 9] their features.
    """
    count = len(states)
    actions = len(table)
    latent = networks.represent(states)  # (M, S, W)
    _, parts = networks.judge(latent)
    logits = _joint(parts, vectors)  # (M, S, A)
    wide = latent[:, :, None].expand(-1, -1, actions, -1).reshape(len(latent), count * actions, -1)
    after = networks.step(wide, table.repeat(count, 1))
    reward = networks.expected(networks.rewards(wide, after))
    value = networks.expected(networks.judge(after)[0])
    q = (reward + value).view(len(latent), count, actions).mean(0)  # (S, A)
    low = q.min(1, keepdim=True).values
    high = q.max(1, keepdim=True).values
    sigma = _VISITS * 0.1 * (q - low) / (high - low).clamp(min=1e-6)
    joint = torch.softmax(logits.mean(0) + sigma, dim=-1)
    margins = [
        torch.zeros(count, size).index_add_(1, vectors[:, place], joint)
        for place, size in enumerate(POLICY)
    ]
    return torch.cat(margins, dim=1)


def _joint(parts: Tensor, vectors: Tensor) -> Tensor:
    """Log-probabilities of whole actions from the logits of their parts: [M, S, 18] → [M, S, A]."""
    logs = [torch.log_softmax(part, dim=-1) for part in parts.split(POLICY, dim=-1)]
    return torch.stack([log[..., vectors[:, place]] for place, log in enumerate(logs)]).sum(0)


def actions_drawn(generator: torch.Generator, count: int = _SAMPLED) -> tuple[Tensor, Tensor]:
    """Different action vectors, [A, 6], doing nothing the first of them, and their features [A, 9]; at most all there are."""
    vectors, table = _table()
    others = 1 + torch.randperm(len(vectors) - 1, generator=generator)[: count - 1]
    chosen = torch.cat([torch.zeros(1, dtype=torch.int64), others])
    return vectors[chosen], table[chosen]


@cache
def _table() -> tuple[Tensor, Tensor]:
    """All action vectors [A, 6] and their features [A, 9]."""
    codec = ActionCodec(InterventionConfig())
    vectors = list(product(*map(range, POLICY)))
    table = [features.action(codec.decode(vector)) for vector in vectors]
    return torch.tensor(vectors), torch.tensor(table, dtype=torch.float32)


def _follow(slow: Networks, networks: Networks, share: float) -> None:
    torch._foreach_lerp_(
        list(slow.parameters()), [p.detach() for p in networks.parameters()], share
    )


def _moments(examples: Examples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature over the snapshots used; what was never measured has 0 and 1."""
    used = examples.states[np.unique(examples.snapshot)]
    known = np.isfinite(used).any(0)
    mean = np.zeros(used.shape[1])
    deviation = np.ones(used.shape[1])
    mean[known], deviation[known] = (
        np.nanmean(used[:, known], axis=0),
        np.nanstd(used[:, known], axis=0),
    )
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(
        np.maximum(deviation, 1e-3), dtype=torch.float32
    )


def _tensors(examples: Examples, members: int, generator: torch.Generator) -> _Tensors:
    def real(values: Any) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=torch.float32)

    outcome = to_units(
        real(np.stack([examples.horizon, examples.annealed, examples.final], axis=1))
    )
    place = np.where(
        examples.recovered, np.ceil(examples.recovery * LOOKS / features.DECISIONS - 1e-9), LOOKS
    )
    place[np.isnan(examples.recovery)] = -1  # not watched: at any time
    per_snapshot = np.bincount(examples.snapshot, minlength=len(examples.states))
    mass = np.minimum(1.0, _BUSY / per_snapshot[examples.snapshot])
    trunks = torch.empty(members, len(examples.trunks)).exponential_(generator=generator)
    return _Tensors(
        states=real(examples.states),
        snapshot=torch.tensor(examples.snapshot),
        after=real(examples.after),
        actions=real(examples.actions),
        law=to_units(real(examples.law)),
        outcome=outcome,
        looks=to_units(real(examples.looks[:, 1::2])),
        fall=real(examples.fall),
        to_end=real(examples.to_end),
        diverged=torch.tensor(examples.diverged),
        fired=real(examples.fired),
        recovery=torch.tensor(place.astype(np.int64)),
        recovered=torch.tensor(examples.recovered),
        weights=trunks[:, torch.tensor(examples.trunk)] * real(mass),
    )
