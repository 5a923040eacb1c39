"""`Proposal`: drafted tokens of a batch, cut where the draft is not sure enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainenv.decoding.contract import Draft


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Drafted tokens of each row.

    Attributes:
        tokens: Drafted tokens of each row, B lists of different lengths.
        padded: The same tokens, int64 [B, N], with 0 at the right.
        q: Distribution that each token was drawn from, [B, N, V]; None if not drawn at random.
        fell_back: True where the draft ended before its limit.
        calls: Number of calls of the draft model.
        own: Probabilities of the tokens under the draft, of each row; None if it gave none.
    """

    tokens: tuple[list[int], ...]
    padded: Tensor
    q: Tensor | None
    fell_back: tuple[bool, ...]
    calls: int
    own: Sequence[Sequence[float]] | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of tokens of each row."""
        return tuple(map(len, self.tokens))

    def select(self, places: Sequence[int]) -> Proposal:
        """Return the proposal of some rows, by their places in this one."""
        index = torch.tensor(places, dtype=torch.int64, device=self.padded.device)
        q = self.q
        if q is not None:
            q = q[index]
        return Proposal(
            tokens=tuple(self.tokens[place] for place in places),
            padded=self.padded[index],
            q=q,
            fell_back=tuple(self.fell_back[place] for place in places),
            calls=0,
        )

    def only(self, kept: Sequence[bool]) -> Proposal:
        """Return the proposal with the tokens of some rows only, those where `kept` is True."""
        tokens: list[list[int]] = [[] for _ in kept]
        for row, stays in enumerate(kept):
            if stays:
                tokens[row] = self.tokens[row]
        return replace(self, tokens=tuple(tokens))


def nothing(rows: int, device: torch.device) -> Proposal:
    """Return a proposal without tokens."""
    return Proposal(
        tokens=tuple([] for _ in range(rows)),
        padded=torch.zeros(rows, 0, dtype=torch.int64, device=device),
        q=None,
        fell_back=(False,) * rows,
        calls=0,
    )


def cut(draft: Draft, limits: Sequence[int], stop_below: float, device: torch.device) -> Proposal:
    """Return the tokens of a draft before the first place of low confidence, and up to the limits.

    Args:
        draft: Tokens as the drafter proposed them.
        limits: Most tokens of each row.
        stop_below: Largest probability below which a draft ends.
        device: Device of the target.
    """
    if draft.confidence is None:
        sure = [[1.0] * draft.tokens.shape[1]] * len(limits)
    else:
        sure = draft.confidence.tolist()
    counts = []
    for count, limit, row in zip(draft.counts, limits, sure, strict=True):
        unsure = (place for place, value in enumerate(row) if value < stop_below)
        counts.append(min(count, limit, next(unsure, count)))
    width = max(counts)
    q = draft.probabilities
    if q is not None:
        q = q[:, :width].to(device)
    return Proposal(
        tokens=tuple(row[:count] for row, count in zip(draft.tokens.tolist(), counts, strict=True)),
        padded=draft.tokens[:, :width].to(device),
        q=q,
        fell_back=tuple(count < limit for count, limit in zip(counts, limits, strict=True)),
        calls=draft.calls,
        own=draft.own,
    )


def either(kept: Proposal, fresh: Proposal) -> Proposal:
    """Return the rows of `kept` that have tokens, and those of `fresh` for the others."""
    chosen = [kept if ours else fresh for ours in kept.tokens]
    width = max(len(one.tokens[row]) for row, one in enumerate(chosen))
    parts = [(row, 0, one) for row, one in enumerate(chosen)]
    return Proposal(
        tokens=tuple(one.tokens[row] for row, one in enumerate(chosen)),
        padded=_padded([one.tokens[row] for row, one in enumerate(chosen)], kept.padded.device),
        q=_placed(parts, width),
        fell_back=tuple(one.fell_back[row] for row, one in enumerate(chosen)),
        calls=fresh.calls,
    )


def with_next(proposal: Proposal, ahead: Proposal) -> Proposal:
    """Return the proposal with the first token drafted ahead added to each row."""
    tokens = tuple(
        [*ours, *more[:1]] for ours, more in zip(proposal.tokens, ahead.tokens, strict=True)
    )
    parts = [(row, 0, proposal) for row in range(len(tokens))]
    parts += [(row, len(proposal.tokens[row]), ahead) for row in range(len(tokens))]
    return Proposal(
        tokens=tokens,
        padded=_padded(tokens, proposal.padded.device),
        q=_placed(parts, max(map(len, tokens))),
        fell_back=proposal.fell_back,
        calls=0,
    )


def after_next(ahead: Proposal) -> Proposal:
    """Return what was drafted ahead without its first token."""
    q = ahead.q
    if q is not None:
        q = q[:, 1:]
    return Proposal(
        tokens=tuple(row[1:] for row in ahead.tokens),
        padded=ahead.padded[:, 1:],
        q=q,
        fell_back=ahead.fell_back,
        calls=0,
    )


def _padded(tokens: Sequence[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, tokens))
    filled = [[*row, *[0] * (width - len(row))] for row in tokens]
    return torch.tensor(filled, dtype=torch.int64, device=device).view(len(tokens), width)


def _placed(parts: Sequence[tuple[int, int, Proposal]], width: int) -> Tensor | None:
    """Return distributions [B, width, V] put together; None if no part was drawn at random.

    Args:
        parts: Row, first place in the result, and the proposal whose distributions go there.
        width: Number of places.
    """
    known = [one.q for _, _, one in parts if one.q is not None]
    if not known:
        return None
    rows = 1 + max(row for row, _, _ in parts)
    q = known[0].new_zeros(rows, width, known[0].shape[-1])
    for row, place, one in parts:
        count = min(len(one.tokens[row]), width - place)
        if one.q is not None and count > 0:
            q[row, place : place + count] = one.q[row, :count]
    return q
