"""Distances between the text of a rule and that of the target.

Total variation is ½ Σ |a − b|: the largest difference in the probability of any event. It is 0 for
a rule that keeps the distribution, and measured here for those that do not:

- `text_law` enumerates all texts of a few tokens: exact, for vocabularies of about 6 tokens.
- `measure` follows generated text of real models, and averages the distance of the next token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainenv.decoding.contract import Block, Rule, Sampling, Settings
from trainenv.decoding.decoder import Decoder, Prompts
from trainenv.decoding.sampling import distribution, largest
from trainenv.types import UserError

Logits = Callable[[tuple[int, ...]], Tensor]
"""Function from the tokens so far to the logits of the next one, [V]."""


def total_variation(first: Tensor, second: Tensor) -> Tensor:
    """Return ½ Σ |a − b| over the last dimension, [...], of distributions [..., V]."""
    return (first - second).abs().sum(dim=-1) / 2


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return Σ min(a, b) over the last dimension: the chance that the exact rule accepts a token.

    It is 1 − `total_variation`. Averaging it over places estimates acceptance with less noise than
    counting accepted tokens, and without the bias of min(1, p / q) at places that were drawn.
    """
    return torch.minimum(first, second).sum(dim=-1)


def parts_of_next(rule: Rule, block: Block, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the law of the token at each drafted place, as two parts that add up to it.

    Args:
        rule: Rule that decides.
        block: Drafted tokens [B, N] with the distributions that they were drawn from.
        settings: Thresholds.

    Returns:
        Probability that each token is drafted and accepted, [B, N, V], and that it replaces a
        rejected one, [B, N, V].
    """
    vocabulary = block.p.shape[-1]
    q = block.q
    if q is None:
        q = torch.zeros_like(block.p).scatter_(-1, block.tokens.unsqueeze(-1), 1.0)
    every = torch.arange(vocabulary, device=block.p.device).expand_as(block.p)
    stays = q * rule.acceptance(replace(block, tokens=every), settings)
    rejected = 1 - stays.sum(dim=-1, keepdim=True)
    flat = rule.replacement(
        block.p.flatten(0, 1),
        None if block.q is None else block.q.flatten(0, 1),
        block.tokens.flatten(),
    )
    return stays, rejected * flat.view_as(block.p)


def text_law(
    target: Logits,
    draft: Logits,
    *,
    rule: Rule,
    settings: Settings,
    length: int,
    sampling: Sampling | None = None,
    draft_sampling: Sampling | None = None,
) -> Tensor:
    """Return the probability of every text of `length` tokens under a rule.

    The work grows as V^(length + K): use it for vocabularies up to about 6 tokens.

    Args:
        target: Logits of the target.
        draft: Logits of the draft.
        rule: Rule that decides; one that drafts ahead has the law of the exact rule.
        settings: Thresholds and length of a draft.
        length: Number of tokens of a text, at least 1.
        sampling: Temperature and top-p of the target.
        draft_sampling: Temperature and top-p of the draft; None for those of the target.

    Returns:
        Probabilities [V, …, V], one dimension a token.
    """
    ours = sampling or Sampling()
    theirs = draft_sampling or ours
    vocabulary = target(()).shape[-1]
    law = torch.zeros((vocabulary,) * length, dtype=target(()).dtype)
    starts: list[dict[tuple[int, ...], float]] = [{} for _ in range(length)]
    starts[0][()] = 1.0

    def add(prefix: tuple[int, ...], mass: float) -> None:
        if mass <= 0:
            return
        if len(prefix) == length:
            law[prefix] += mass
        else:
            starts[len(prefix)][prefix] = starts[len(prefix)].get(prefix, 0.0) + mass

    def follow(prefix: tuple[int, ...], mass: float, left: int, drafted: int) -> None:
        """Draft one more token of a round that has reached `prefix` with probability `mass`."""
        logits = target(prefix)
        p = distribution(logits, ours)
        guess = draft(prefix)
        fell_back = left > 0 and float(largest(guess)) < settings.fallback_threshold
        if left == 0 and drafted and not rule.bonus:
            add(prefix, mass)
            return
        if left == 0 or fell_back:
            for token, chance in enumerate(p.tolist()):
                add((*prefix, token), mass * chance)
            return
        q = distribution(guess, theirs)
        block = Block(
            row_ids=(0,),
            tokens=torch.zeros(1, 1, dtype=torch.int64),
            counts=(1,),
            q=q.view(1, 1, -1),
            p=p.view(1, 1, -1),
            logits=logits.view(1, 1, -1),
        )
        stays, replaced = parts_of_next(rule, block, settings)
        for token, chance in enumerate(stays.flatten().tolist()):
            if chance > 0 and len(prefix) + 1 == length:
                add((*prefix, token), mass * chance)
            elif chance > 0:
                follow((*prefix, token), mass * chance, left - 1, drafted + 1)
        for token, chance in enumerate(replaced.flatten().tolist()):
            add((*prefix, token), mass * chance)

    for done in range(length):
        for prefix, mass in starts[done].items():
            follow(prefix, mass, min(settings.k, length - done - int(rule.bonus)), 0)
    return law


def target_law(target: Logits, length: int, sampling: Sampling | None = None) -> Tensor:
    """Return the probability of every text of `length` tokens of the target, [V, …, V]."""
    ours = sampling or Sampling()
    vocabulary = target(()).shape[-1]
    law = torch.ones((vocabulary,) * length, dtype=target(()).dtype)
    for done in range(length):
        for prefix in itertools.product(range(vocabulary), repeat=done):
            p = distribution(target(prefix), ours)
            law[prefix] *= p.view(-1, *[1] * (length - done - 1))
    return law


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Distance of a rule's text to the target's, measured along generated text.

    Attributes:
        per_token: Mean total variation between the law of the next token and that of the target,
            given the text so far, over generated tokens. Times n it bounds from above the total
            variation between whole texts of n tokens.
        error: Standard error of `per_token` over rows; NaN for one row.
        overlap: Mean Σ min(p, q) over drafted places that were reached; NaN if nothing was drafted.
        tokens: Number of generated tokens.
    """

    per_token: float
    error: float
    overlap: float
    tokens: int


def measure(decoder: Decoder, prompts: Prompts, *, max_new_tokens: int, seed: int = 0) -> Distance:
    """Measure the distance of a decoder's text to the target's, along text that it generates.

    At each place, given the text so far and where the draft began, the law of the next token is
    known in full: drafted and accepted, or replaced. Its total variation to the target's p is
    computed without sampling; only the text before it is sampled. Each drafted place counts with
    the probability that it is reached; tokens that the target adds have distance 0. The mean is an
    unbiased estimate of the expected distance a token under the rule's own text, up to the ratio
    of two means.

    Args:
        decoder: Target, drafter and rule.
        prompts: Tokens of each prompt; take at least 8 for a usable standard error.
        max_new_tokens: Most tokens generated a row.
        seed: Random seed.

    Raises:
        UserError: The rule drafts ahead, so that places of a block follow several drafts.
    """
    rule = decoder.rule
    if rule.drafts_ahead:
        raise UserError(
            "a distance is measured with a rule that does not draft ahead, found "
            f"{type(rule).__name__}, which keeps the text of the exact rule; measure Exact()"
        )
    distances: dict[int, float] = {}
    places: list[tuple[float, float]] = []  # (weight, overlap)

    def observe(block: Block) -> None:
        stays, replaced = parts_of_next(rule, block, decoder.settings)
        far = total_variation(stays + replaced, block.p)
        accepted = rule.acceptance(block, decoder.settings)
        reached = accepted.cumprod(dim=1).roll(1, dims=1)
        reached[:, 0] = 1.0
        counts = torch.tensor(block.counts, device=far.device).unsqueeze(-1)
        reached = reached * (torch.arange(far.shape[1], device=far.device) < counts)
        for row, sum_ in zip(block.row_ids, (far * reached).sum(dim=1).tolist(), strict=True):
            distances[row] = distances.get(row, 0.0) + sum_
        if block.q is not None:
            common = overlap(block.p, block.q)
        else:
            common = block.pick(block.p)
        places.append((float(reached.sum()), float((common * reached).sum())))

    generation = decoder.generate(
        prompts, max_new_tokens=max_new_tokens, seed=seed, observer=observe
    )
    lengths = [len(row) for row in generation.new_tokens]
    sums = [distances.get(row, 0.0) for row in range(len(lengths))]
    mean = sum(sums) / generation.tokens
    weight = sum(reached for reached, _ in places)
    common = math.nan
    if weight > 0:
        common = sum(both for _, both in places) / weight
    return Distance(
        per_token=mean,
        error=_ratio_error(sums, lengths, mean),
        overlap=common,
        tokens=generation.tokens,
    )


def _ratio_error(sums: Sequence[float], lengths: Sequence[int], mean: float) -> float:
    """Return the standard error of Σ sums / Σ lengths over independent rows."""
    rows = len(sums)
    if rows < 2:
        return math.nan
    squares = sum((part - mean * length) ** 2 for part, length in zip(sums, lengths, strict=True))
    return math.sqrt(squares / (rows - 1) * rows) / sum(lengths)
