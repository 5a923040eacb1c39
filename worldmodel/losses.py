"""Losses that the networks are trained with.

Each function returns [M, B], a loss for each member and branch; the caller weighs and averages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainenv.worldmodel.examples import LEVELS
from trainenv.worldmodel.networks import ACTION_SIZES, two_hot


def pinball(quantiles: Tensor, outcome: Tensor) -> Tensor:
    """Return the quantile loss (Koenker & Bassett 1978), mean over levels and measured targets.

    Args:
        quantiles: [M, B, 3, 5] forecast quantiles of Δ in units.
        outcome: [B, 3] measured Δ in units; NaN where not measured.
    """
    known = torch.isfinite(outcome)  # (B, 3)
    error = torch.nan_to_num(outcome).unsqueeze(-1) - quantiles  # (M, B, 3, 5)
    levels = torch.tensor(LEVELS, device=quantiles.device)
    each = torch.maximum(levels * error, (levels - 1) * error).mean(-1)  # (M, B, 3)
    return (each * known).sum(-1) / known.sum(-1).clamp(min=1)


def curve(medians: Tensor, looks: Tensor) -> Tensor:
    """Return the absolute error of the median after each decision, mean over measured decisions.

    Args:
        medians: [M, B, 4] forecast medians of Δ in units.
        looks: [B, 4] measured Δ in units; NaN where not measured.
    """
    known = torch.isfinite(looks)
    return ((medians - torch.nan_to_num(looks)).abs() * known).sum(-1) / known.sum(-1).clamp(min=1)


def survival(logits: Tensor, diverged: Tensor) -> Tensor:
    """Return the negative log-likelihood of a discrete-time hazard.

    Args:
        logits: [M, B, D] logits of the hazard in each of D decisions.
        diverged: [B] decision in which the branch diverged; −1 if it did not within D.
    """
    decisions = torch.arange(logits.shape[-1], device=logits.device)
    last = torch.where(diverged < 0, logits.shape[-1] - 1, diverged).unsqueeze(-1)  # (B, 1)
    happened = (decisions == diverged.unsqueeze(-1)).float().expand_as(logits)
    each = F.binary_cross_entropy_with_logits(logits, happened, reduction="none")
    return (each * (decisions <= last)).sum(-1)


def censored(logits: Tensor, place: Tensor, known: Tensor) -> Tensor:
    """Return the negative log-likelihood of a time that falls into one of R intervals.

    Where the time is not known it is right-censored: it falls into any interval after `place`.

    Args:
        logits: [M, B, R] logits of the intervals.
        place: [B] int64 interval of the time, or last interval in which the branch was watched; −1
            for a branch that was not watched.
        known: [B] True where the time was observed.
    """
    logs = F.log_softmax(logits, dim=-1)
    exact = logs.gather(-1, place.clamp(min=0).expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
    later = torch.arange(logits.shape[-1], device=logits.device) > place.unsqueeze(-1)  # (B, R)
    later[..., -1] = True  # a time censored in the last interval stays there
    beyond = torch.logsumexp(logs.masked_fill(~later, -torch.inf), dim=-1)
    return -torch.where(known, exact, beyond)


def categorical(logits: Tensor, nats: Tensor, bins: Tensor) -> Tensor:
    """Return the cross-entropy with a two-hot target, mean over the D known values.

    Args:
        logits: [M, B, D, bins] logits of rewards or values.
        nats: [B, D] rewards or values in nats; NaN where not known.
        bins: [bins] centres of the bins, rescaled.
    """
    known = torch.isfinite(nats)
    target = two_hot(torch.nan_to_num(nats), bins)  # (B, D, bins)
    each = -(target * F.log_softmax(logits, dim=-1)).sum(-1)  # (M, B, D)
    return (each * known).sum(-1) / known.sum(-1).clamp(min=1)


def policy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of the policy, summed over the parts of the action.

    Args:
        logits: [M, B, 18] logits of the policy.
        target: [B, 18] probabilities.
    """
    total = torch.zeros(logits.shape[:2], device=logits.device)
    for part, wanted in zip(logits.split(ACTION_SIZES, dim=-1), target.split(ACTION_SIZES, dim=-1)):
        total = total - (wanted * F.log_softmax(part, dim=-1)).sum(-1)
    return total


def consistency(decoded: Tensor, features: Tensor) -> Tensor:
    """Return the squared error of features decoded from latents, mean over measured features.

    Args:
        decoded: [M, B, D, F] decoded features.
        features: [B, D, F] measured features as z-scores; NaN where not measured.
    """
    known = torch.isfinite(features)
    each = (decoded - torch.nan_to_num(features)).square() * known
    return each.sum((-1, -2)) / known.sum((-1, -2)).clamp(min=1)
