"""Nouns of decoding with a draft: settings, drafters, rules, and the result of a generation.

A *drafter* proposes tokens, the *target* reads them all in one call, and a *rule* decides how many
stay. The decoder meets drafters and rules only through the protocols of this file.

Shapes: B rows, N drafted tokens, V tokens in the vocabulary of the target, W positions of a target
call, H features. `q` are probabilities of the draft, `p` those of the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from trainenv.tools.checks import number, whole
from trainenv.types import UserError

MAX_K = 16
"""Most tokens that can be drafted for one target call."""
FALLBACK_RANGE = (0.05, 0.95)
"""Interval in which the fallback threshold is searched, as a probability."""


def rollback_range(k: int) -> tuple[float, float]:
    """Return the interval in which the rollback threshold is searched, in nats: [1, K].

    A token with a probability below e⁻⁸ (0.0003) is rarely drafted. Therefore thresholds above
    about 8 to 10 nats accept everything, and most of the interval is flat where K is 16.
    """
    return 1.0, float(max(k, 1))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings that turn logits into the distribution that is sampled from.

    Args:
        temperature: Divisor of the logits, at least 0; 0 takes the most likely token (greedy).
        top_p: Probability mass that stays, above 0 and at most 1: the smallest set of the most
            likely tokens that reaches it. 1 keeps all tokens.

    Raises:
        UserError: A value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", number("temperature", self.temperature, least=0))
        object.__setattr__(self, "top_p", number("top_p", self.top_p, above=0, most=1))

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always taken."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)
"""Sampling that always takes the most likely token."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Thresholds and length of a draft.

    Both thresholds look at the models' softmax at temperature 1 with all tokens, so they mean the
    same at any `Sampling`, greedy included.

    Args:
        fallback_threshold: Probability, at least 0: drafting ends before the first token at which
            the draft's largest probability is below it. 0 never ends a draft, and a value above 1
            ends each one before its first token.
        rollback_threshold: Largest −ln p_target of a drafted token that stays, in nats, at least 0;
            infinity keeps all. Only lossy rules use it. Above about 8 to 10 it keeps nearly all.
        k: Most tokens drafted for one target call, K; from 1 to 16.

    Raises:
        UserError: A value is out of range.
    """

    fallback_threshold: float = 0.4
    rollback_threshold: float = 3.0
    k: int = 8

    def __post_init__(self) -> None:
        fallback = number("fallback_threshold", self.fallback_threshold, least=0)
        rollback = self.rollback_threshold
        if rollback != math.inf:
            rollback = number("rollback_threshold", rollback, least=0)
        k = whole("k", self.k, least=1)
        if k > MAX_K:
            raise UserError(f"k must be from 1 to {MAX_K}, found {k}; draft fewer tokens a call")
        object.__setattr__(self, "fallback_threshold", fallback)
        object.__setattr__(self, "rollback_threshold", rollback)
        object.__setattr__(self, "k", k)

    @classmethod
    def searched(
        cls, *, fallback_threshold: float, rollback_threshold: float, k: int = MAX_K
    ) -> Settings:
        """Return settings inside the intervals of the search.

        Args:
            fallback_threshold: Probability in `FALLBACK_RANGE`.
            rollback_threshold: Nats in `rollback_range(k)`.
            k: Most tokens drafted for one target call, from 1 to 16.

        Raises:
            UserError: A value is outside its interval.
        """
        made = cls(
            fallback_threshold=fallback_threshold, rollback_threshold=rollback_threshold, k=k
        )
        for name, interval in (
            ("fallback_threshold", FALLBACK_RANGE),
            ("rollback_threshold", rollback_range(made.k)),
        ):
            number(name, getattr(made, name), least=interval[0], most=interval[1])
        return made

    @classmethod
    def with_probability(
        cls, *, rollback_probability: float, fallback_threshold: float = 0.4, k: int = 8
    ) -> Settings:
        """Return settings whose rollback threshold is given as a probability, −ln of it in nats.

        Args:
            rollback_probability: Least p_target of a drafted token that stays, from 0 (all stay)
                to 1.
            fallback_threshold: Probability below which the draft ends, at least 0.
            k: Most tokens drafted for one target call, from 1 to 16.

        Raises:
            UserError: A value is out of range.
        """
        found = number("rollback_probability", rollback_probability, least=0, most=1)
        rollback = math.inf
        if found > 0:
            rollback = abs(math.log(found))
        return cls(fallback_threshold=fallback_threshold, rollback_threshold=rollback, k=k)

    @property
    def rollback_probability(self) -> float:
        """Least p_target of a drafted token that stays, e^−`rollback_threshold`."""
        return math.exp(-self.rollback_threshold)


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
    """

    states: Tensor
    index: tuple[int, ...]
    positions: tuple[int, ...]

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
    """

    tokens: Tensor
    counts: tuple[int, ...]
    probabilities: Tensor | None = None
    confidence: Tensor | None = None
    calls: int = 0


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
        tokens: Drafted tokens, int64 [B, N].
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
        """Return the probability that each drafted token is accepted, [B, N]."""
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


@dataclass(frozen=True, kw_only=True)
class TargetCall:
    """Statistics of one target call; tuples have one entry a row.

    Attributes:
        row_ids: Index in the batch of the rows that took part.
        drafted: Number of drafted tokens that were verified.
        accepted: Number of drafted tokens that stayed.
        emitted: Number of tokens by which the row grew; drafted tokens and those of the target.
        fell_back: True where the draft ended before the length asked for.
        draft_calls: Calls of the draft model before the target call.
        ahead_calls: Calls of the draft model that could run at the time of the target call.
        draft_seconds: Time of the drafting before the target call.
        ahead_seconds: Time of the drafting that could run at the time of the target call. A clock
            with two devices counts the longer of this and `target_seconds`.
        target_seconds: Time of the target call.
        rule_seconds: Time of sampling and of the rule.
    """

    row_ids: tuple[int, ...]
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    emitted: tuple[int, ...]
    fell_back: tuple[bool, ...]
    draft_calls: int
    ahead_calls: int
    draft_seconds: float
    ahead_seconds: float
    target_seconds: float
    rule_seconds: float


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated text and the statistics of how it was made.

    Attributes:
        prompts: Tokens of each prompt.
        new_tokens: Tokens generated after each prompt, with the end token if there was one.
        calls: Statistics of each target call, in order; the first reads the prompts.
        seconds: Time of the whole generation.
    """

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: tuple[tuple[int, ...], ...]
    calls: tuple[TargetCall, ...]
    seconds: float

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Prompt and generated tokens of each row."""
        return tuple(a + b for a, b in zip(self.prompts, self.new_tokens, strict=True))

    @property
    def tokens(self) -> int:
        """Number of generated tokens of all rows."""
        return sum(map(len, self.new_tokens))

    @property
    def target_calls(self) -> int:
        """Number of calls of the target; a batch is one call."""
        return len(self.calls)

    @property
    def draft_calls(self) -> int:
        """Number of calls of the draft model; a batch is one call."""
        return sum(call.draft_calls + call.ahead_calls for call in self.calls)

    @property
    def drafted(self) -> int:
        """Number of drafted tokens that were verified, of all rows."""
        return sum(sum(call.drafted) for call in self.calls)

    @property
    def accepted(self) -> int:
        """Number of drafted tokens that stayed, of all rows."""
        return sum(sum(call.accepted) for call in self.calls)

    @property
    def acceptance(self) -> float:
        """Accepted tokens a verified one; NaN where nothing was drafted.

        It depends on where drafts ended. The overlap Σ min(p, q) of two models is not estimated by
        it; see `distances.overlap`.
        """
        if not self.drafted:
            return math.nan
        return self.accepted / self.drafted

    @property
    def tokens_per_call(self) -> float:
        """Mean number of tokens that a row grew by in a target call."""
        taken = sum(len(call.row_ids) for call in self.calls)
        return self.tokens / max(taken, 1)

    @property
    def seconds_by_part(self) -> dict[str, float]:
        """Seconds of each part: draft, ahead, target, rule, and the rest as `loop`."""
        parts = {
            part: sum(getattr(call, f"{part}_seconds") for call in self.calls)
            for part in ("draft", "ahead", "target", "rule")
        }
        return {**parts, "loop": max(0.0, self.seconds - sum(parts.values()))}

    @property
    def seconds_on_two_devices(self) -> float:
        """Time if drafting ahead and the target call ran at once, each on its own device."""
        saved = sum(min(call.ahead_seconds, call.target_seconds) for call in self.calls)
        return self.seconds - saved


Observer = Callable[[Block], None]
"""Function that gets each block after its target call, for example to record p and q."""
