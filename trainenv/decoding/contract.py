"""Nouns of decoding with a draft: settings, drafters, rules, and the result of a generation.

A *drafter* proposes tokens, the *target* reads them all in one call, and a *rule* decides how many
stay. The decoder meets drafters and rules only through the protocols of this file.

Shapes: B rows, N drafted tokens, V tokens in the vocabulary of the target, W positions of a target
call, H features. `q` are probabilities of the draft, `p` those of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from trainenv.decoding.generation import Generation, TargetCall
from trainenv.decoding.settings import (
    FALLBACK_RANGE,
    GREEDY,
    MAX_K,
    Sampling,
    Settings,
    rollback_range,
)

__all__ = [
    "FALLBACK_RANGE",
    "GREEDY",
    "MAX_K",
    "Block",
    "Draft",
    "DraftRequest",
    "DraftSession",
    "Drafter",
    "Generation",
    "Observer",
    "RandomSource",
    "Rule",
    "Sampling",
    "Settings",
    "TargetCall",
    "TargetStates",
    "rollback_range",
]


class RandomSource(Protocol):
    """Random numbers of each row, independent of the other rows of the batch."""

    def uniform(self, row_ids: Sequence[int], count: int) -> Tensor:
        """Return the next `count` numbers of each row named, float64 [B, count] in [0, 1)."""
        ...


@dataclass(frozen=True, kw_only=True)
class TargetStates:
    """Last hidden states of the target, for drafters that ask for them.

    Attributes:
        states: Outputs of the last layer that the output head reads, [B, W, H], of the last target
            call; the positions of a row end at the right.
        index: Index in W of the last verified token of each row, B integers: the newest token that
            the target has read and that stayed.
        positions: Position in its row of that token, B integers. The next token is usually known
            already (it is the last of `DraftRequest.rows`), so a head that predicts n tokens ahead
            proposes the token at `positions` + n.
        places: Place that each row had in the batch of that target call, B integers; rows that
            have ended since are left out.
    """

    states: Tensor
    index: tuple[int, ...]
    positions: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def last(self) -> Tensor:
        """States of the last verified tokens, [B, H]."""
        rows = torch.arange(len(self.index), device=self.states.device)
        return self.states[rows, torch.tensor(self.index, device=self.states.device)]


@dataclass(frozen=True, kw_only=True)
class DraftRequest:
    """Everything that a drafter needs for one draft.

    Attributes:
        rows: Tokens of each row to continue: prompt and what followed. Read only.
        row_ids: Index of each row in the batch; rows that have ended are left out, and do not come
            back.
        unchanged: Number of leading tokens of each row that are as in the last request, the tokens
            proposed then included; keys and values up to there can be used again.
        limits: Most tokens wanted for each row; 0 where the row needs none.
        k: Most tokens drafted for one target call, K.
        stop_below: Largest probability (softmax at temperature 1) below which a draft ends. The
            decoder cuts the draft there; a drafter may stop earlier to save calls.
        sampling: Sampling of the target; a drafter may sample in another way, if its `q` says so.
        dtype: Type of the probabilities, float32 or float64.
        end_tokens: Tokens after which a row has ended.
        source: Random numbers. Draw `k` of each row whose limit is above 0, whatever the limit, so
            that no row depends on its neighbours.
        target_states: Hidden states of the target; None unless the drafter asks for them, and in
            the first request.
        ends: Functions, one a row, that return True if the block ends after its newest token; see
            `trainenv.decoding.schedules`. None without a schedule. A drafter may ignore them.
    """

    rows: Sequence[list[int]]
    row_ids: tuple[int, ...]
    unchanged: tuple[int, ...]
    limits: tuple[int, ...]
    k: int
    stop_below: float
    sampling: Sampling
    dtype: torch.dtype
    end_tokens: frozenset[int]
    source: RandomSource
    target_states: TargetStates | None = None
    ends: Sequence[Ends] | None = None


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Tokens that a drafter proposes.

    Attributes:
        tokens: Proposed tokens, int64 [B, N], N from 0 to K; a row's own come first.
        counts: Number of tokens proposed for each row, B integers up to N.
        probabilities: Distribution that each token was drawn from, [B, N, V]; None if the tokens
            were not drawn at random (probability 1 each).
        confidence: Largest probability of the draft's softmax at temperature 1 with all tokens
            before each token, [B, N]; None for 1.
        calls: Number of calls of the draft model.
        own: Probability of each token of each row under the distribution that it was drawn from,
            or if it was not drawn at random, under the softmax at temperature 1. A drafter that
            follows `ends` returns them; None for 1.
    """

    tokens: Tensor
    counts: tuple[int, ...]
    probabilities: Tensor | None = None
    confidence: Tensor | None = None
    calls: int = 0
    own: Sequence[Sequence[float]] | None = None


class DraftSession(Protocol):
    """State of a drafter for one batch of prompts, for example its keys and values."""

    def propose(self, request: DraftRequest, /) -> Draft:
        """Propose tokens that continue the rows.

        The decoder calls it once before each target call, and with a rule that drafts ahead once
        more, with the tokens under verification at the end of `rows`.
        """
        ...


class Drafter(Protocol):
    """Anything that proposes tokens; a frozen dataclass.

    Attributes:
        needs_states: True to get the last hidden states of the target. The first target call then
            has no draft.
    """

    @property
    def needs_states(self) -> bool: ...

    def check(self, vocabulary: int, tokenizer: object | None, /) -> None:
        """Refuse a target that this drafter cannot serve; the decoder calls it when it is made.

        Args:
            vocabulary: Number of tokens that the target gives logits for, V.
            tokenizer: Tokenizer of the target, None if it is not known.

        Raises:
            UserError: The vocabularies differ.
        """
        ...

    def open(self, vocabulary: int, /) -> DraftSession:
        """Return a fresh session; the decoder calls it once a batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Block:
    """Drafted tokens under verification, as a rule and an observer see them.

    Attributes:
        row_ids: Index in the batch of each row.
        tokens: Drafted tokens, int64 [B, N]; or C tokens to ask about at each place, [B, N, C].
        counts: Number of drafted tokens of each row, B integers up to N; later entries of a row
            mean nothing.
        q: Distribution that each token was drawn from, [B, N, V]; None if the tokens were not drawn
            at random.
        p: Distribution of the target at the place of each token, after temperature and top-p,
            [B, N, V].
        logits: Logits of the target at the same places, [B, N, V], in the type of `p`.
    """

    row_ids: tuple[int, ...]
    tokens: Tensor
    counts: tuple[int, ...]
    q: Tensor | None
    p: Tensor
    logits: Tensor

    def pick(self, values: Tensor) -> Tensor:
        """Return the entries of the tokens in values [B, N, V], in the shape of `tokens`."""
        if self.tokens.dim() == values.dim():
            return values.gather(-1, self.tokens)
        return values.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)


class Rule(Protocol):
    """Decision about drafted tokens, free of randomness and of state; a frozen dataclass.

    The decoder keeps the drafted tokens up to the first that is not accepted, and puts a token
    drawn from `replacement` in its place. If all are accepted it adds a token of the target, where
    `bonus` is True or the draft fell back.

    Attributes:
        keeps_distribution: True if the generated text has exactly the distribution of the target.
        drafts_ahead: True if the draft continues while the target verifies.
        bonus: True to add a token of the target after a draft of full length that was accepted.
    """

    keeps_distribution: ClassVar[bool]
    drafts_ahead: ClassVar[bool]

    @property
    def bonus(self) -> bool: ...

    def acceptance(self, block: Block, settings: Settings, /) -> Tensor:
        """Return the probability that each token is accepted, in the shape of `block.tokens`.

        It is asked for the drafted tokens, and by `distances` for the whole vocabulary.
        """
        ...

    def replacement(self, p: Tensor, q: Tensor | None, tokens: Tensor, /) -> Tensor:
        """Return the distribution of the token in the place of a rejected one, [B, V].

        Args:
            p: Distribution of the target there, [B, V].
            q: Distribution that the rejected token was drawn from, [B, V]; None if it was not drawn
                at random.
            tokens: Rejected tokens, int64 [B].
        """
        ...


Ends = Callable[[Sequence[float], Sequence[float]], bool]
"""Function of the drafted tokens of a block: their probabilities, and the largest ones there."""
Observer = Callable[[Block], None]
"""Function that gets each block after its target call, for example to record p and q."""
