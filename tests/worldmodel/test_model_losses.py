"""Losses against brute force, with masks where nothing was measured."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainenv.worldmodel import losses
from trainenv.worldmodel.examples import LEVELS
from trainenv.worldmodel.networks import ACTION_SIZES, BINS, RECOVERY, two_hot

M, B = 3, 4
NAN = math.nan


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pinball() -> None:
    quantiles = drawn(M, B, 3, 5).sort(dim=-1).values
    outcome = torch.tensor([[0.1, -2.0, 3.0], [NAN, 0.5, NAN], [0.0, NAN, 1.0], [NAN, NAN, NAN]])
    found = losses.pinball(quantiles, outcome)
    for member in range(M):
        for branch in range(B):
            each = []
            for target in range(3):
                y = float(outcome[branch, target])
                if math.isnan(y):
                    continue
                terms = []
                for level, q in zip(LEVELS, quantiles[member, branch, target].tolist()):
                    terms.append(level * (y - q) if y > q else (1 - level) * (q - y))
                each.append(sum(terms) / 5)
            assert float(found[member, branch]) == pytest.approx(
                sum(each) / len(each) if each else 0.0, rel=1e-5
            )


def test_pinball_is_least_at_the_quantiles() -> None:
    outcome = drawn(4000, 1, seed=1).expand(-1, 3)
    best = torch.tensor([torch.quantile(outcome[:, 0], level) for level in LEVELS]).expand(
        1, 4000, 3, 5
    )
    least = losses.pinball(best, outcome).mean()
    for place in range(5):
        for shift in (-0.2, 0.2):
            moved = best.clone()
            moved[..., place] += shift
            assert losses.pinball(moved, outcome).mean() > least


def test_curve_leaves_out_what_was_not_measured() -> None:
    medians = drawn(M, 3, 4)
    looks = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, NAN, NAN, 0.0], [NAN] * 4])
    found = losses.curve(medians, looks)
    torch.testing.assert_close(found[:, 0], (medians[:, 0] - looks[0]).abs().mean(-1))
    torch.testing.assert_close(
        found[:, 1], ((medians[:, 1, 0] - 1).abs() + medians[:, 1, 3].abs()) / 2
    )
    assert not found[:, 2].any()


def test_survival() -> None:
    logits = drawn(M, B, 4)
    diverged = torch.tensor([-1, 0, 2, 3])
    found = losses.survival(logits, diverged)
    hazard = torch.sigmoid(logits.double())
    for member in range(M):
        for branch, last in enumerate(diverged.tolist()):
            chance = 1.0
            for decision in range(4 if last < 0 else last):
                chance *= 1 - float(hazard[member, branch, decision])
            chance *= 1 if last < 0 else float(hazard[member, branch, last])
            assert float(found[member, branch]) == pytest.approx(-math.log(chance), rel=1e-5)


def test_censored() -> None:
    """Of a time that was not seen, only what is later counts; in the last place it stays there; −1 says nothing."""
    logits = drawn(M, 6, RECOVERY)
    place, known = (
        torch.tensor([0, 8, 3, 9, 8, -1]),
        torch.tensor([True, True, False, False, False, False]),
    )
    found = losses.censored(logits, place, known)
    chances = torch.softmax(logits.double(), dim=-1)
    expected = [
        chances[:, 0, 0],
        chances[:, 1, 8],
        chances[:, 2, 4:].sum(-1),
        chances[:, 3, 9],
        chances[:, 4, 9],
    ]
    torch.testing.assert_close(
        found[:, :5].double(), -torch.log(torch.stack(expected, dim=1)), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(found[:, 5], torch.zeros(M), rtol=0, atol=1e-6)


def test_categorical() -> None:
    logits = drawn(M, 3, 4, len(BINS))
    nats = torch.tensor([[0.0, 0.01, -0.2, 5.0], [NAN, 0.1, NAN, NAN], [NAN] * 4])
    found = losses.categorical(logits, nats, BINS)
    logs = F.log_softmax(logits, dim=-1)
    for member in range(M):
        first = [-float((two_hot(nats[0, d], BINS) * logs[member, 0, d]).sum()) for d in range(4)]
        assert float(found[member, 0]) == pytest.approx(sum(first) / 4, rel=1e-5)
        assert float(found[member, 1]) == pytest.approx(
            -float((two_hot(nats[1, 1], BINS) * logs[member, 1, 1]).sum()), rel=1e-5
        )
    assert not found[:, 2].any()


def test_policy() -> None:
    logits = drawn(M, B, sum(ACTION_SIZES))
    parts = drawn(B, sum(ACTION_SIZES), seed=2).split(ACTION_SIZES, dim=-1)
    target = torch.cat([torch.softmax(part, dim=-1) for part in parts], dim=-1)
    found = losses.policy(logits, target)
    for member in range(M):
        for branch in range(B):
            total, start = 0.0, 0
            for size in ACTION_SIZES:
                logs = torch.log_softmax(logits[member, branch, start : start + size], dim=0)
                total -= float((target[branch, start : start + size] * logs).sum())
                start += size
            assert float(found[member, branch]) == pytest.approx(total, rel=1e-5)


def test_consistency() -> None:
    decoded, features = (
        drawn(M, 2, 2, 3),
        torch.tensor([[[1.0, NAN, 0.0], [NAN, NAN, 2.0]], [[NAN] * 3] * 2]),
    )
    found = losses.consistency(decoded, features)
    by_hand = (
        (decoded[:, 0, 0, 0] - 1) ** 2 + decoded[:, 0, 0, 2] ** 2 + (decoded[:, 0, 1, 2] - 2) ** 2
    )
    torch.testing.assert_close(found[:, 0], by_hand / 3)
    assert not found[:, 1].any()


def test_what_was_not_measured_has_no_gradient_either() -> None:
    nothing = torch.full((1, 4), NAN)
    cases = (
        (drawn(M, 1, 4), lambda x: losses.curve(x, nothing)),
        (drawn(M, 1, 3, 5), lambda x: losses.pinball(x, nothing[:, :3])),
        (drawn(M, 1, 4, len(BINS)), lambda x: losses.categorical(x, nothing, BINS)),
        (drawn(M, 1, 2, 4), lambda x: losses.consistency(x, nothing[:, None].expand(1, 2, 4))),
    )
    for values, loss in cases:
        values.requires_grad_(True)
        loss(values).sum().backward()
        assert values.grad is not None
        assert not values.grad.any()
