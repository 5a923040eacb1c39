"""What the networks are trained on: one function a loss, each [M, B] (a member, a branch), so that weights can come later."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainenv.worldmodel.examples import LEVELS
from trainenv.worldmodel.networks import POLICY, two_hot


def pinball(quantiles: Tensor, outcome: Tensor) -> Tensor:
    """Quantile loss (Koenker & Bassett 1978), mean over levels and over the targets that were measured.

    Args:
        quantiles: [M, B, 3, 5] in units.
        outcome: [B, 3] in units; NaN where not measured.
    """
    known = torch.isfinite(outcome)  # (B, 3)
    error = torch.nan_to_num(outcome).unsqueeze(-1) - quantiles  # (M, B, 3, 5)
    levels = torch.tensor(LEVELS, device=quantiles.device)
    each = torch.maximum(levels * error, (levels - 1) * error).mean(-1)  # (M, B, 3)
    return (each * known).sum(-1) / known.sum(-1).clamp(min=1)


def curve(medians: Tensor, looks: Tensor) -> Tensor:
    """Absolute error of the median after each decision, mean over those measured: [M, B, 4] against [B, 4], NaN where not."""
    known = torch.isfinite(looks)
    return ((medians - torch.nan_to_num(looks)).abs() * known).sum(-1) / known.sum(-1).clamp(min=1)


def survival(logits: Tensor, diverged: Tensor) -> Tensor:
    """Negative log-likelihood of a discrete-time hazard.

    Args:
        logits: [M, B, D].
        diverged: [B] decision in which the branch diverged; −1 if it did not within D.
    """
    decisions = torch.arange(logits.shape[-1], device=logits.device)
    last = torch.where(diverged < 0, logits.shape[-1] - 1, diverged).unsqueeze(-1)  # (B, 1)
    happened = (decisions == diverged.unsqueeze(-1)).float().expand_as(logits)
    each = F.binary_cross_entropy_with_logits(logits, happened, reduction="none")
    return (each * (decisions <= last)).sum(-1)


def censored(logits: Tensor, place: Tensor, known: Tensor) -> Tensor:
    """Negative log-likelihood of a time in one of R places; where it is not `known`, of any later place than `place`.

    Args:
        logits: [M, B, R].
        place: [B] int64; −1 with a time not known says nothing.
        known: [B] whether the time was seen; else right-censored at `place`.
    """
    logs = F.log_softmax(logits, dim=-1)
    exact = logs.gather(-1, place.clamp(min=0).expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
    later = torch.arange(logits.shape[-1], device=logits.device) > place.unsqueeze(-1)  # (B, R)
    later[..., -1] = True  # censored in the last place: it stays there
    beyond = torch.logsumexp(logs.masked_fill(~later, -torch.inf), dim=-1)
    return -torch.where(known, exact, beyond)


def categorical(logits: Tensor, nats: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy with a two-hot target, mean over the last axis but one.

    Args:
        logits: [M, B, D, bins].
        nats: [B, D]; NaN where not known.
        bins: [bins] rescaled.
    """
    known = torch.isfinite(nats)
    each = -(two_hot(torch.nan_to_num(nats), bins) * F.log_softmax(logits, dim=-1)).sum(
        -1
    )  # (M, B, D)
    return (each * known).sum(-1) / known.sum(-1).clamp(min=1)


def policy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each part of the action, summed: [M, B, 18] against probabilities [B, 18]."""
    total = torch.zeros(logits.shape[:2], device=logits.device)
    for part, wanted in zip(logits.split(POLICY, dim=-1), target.split(POLICY, dim=-1)):
        total = total - (wanted * F.log_softmax(part, dim=-1)).sum(-1)
    return total


def consistency(decoded: Tensor, features: Tensor) -> Tensor:
    """Squared error of the features that latents tell of, over those measured: [M, B, D, F] against z-scores [B, D, F]."""
    known = torch.isfinite(features)
    each = (decoded - torch.nan_to_num(features)).square() * known
    return each.sum((-1, -2)) / known.sum((-1, -2)).clamp(min=1)
