"""Trace of a model pair: the probabilities that decide how fast speculative decoding is.

A trace holds texts that the target sampled. At each position it keeps the probabilities of both
models, and one block that the draft sampled from there. It is enough to replay speculative decoding
with any thresholds and any block length, without the models: see `trainenv.decoding.traces.replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.tools.checks import whole
from trainenv.types import UserError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

# Rollback thresholds, nats, at which the distance of the lossy rule is recorded. Between them it is
# interpolated; above the last, almost every token is accepted.
ROLLBACKS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 16.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Models, text and sampling of a trace.

    Attributes:
        target: Name of the target model.
        draft: Name of the draft model.
        target_digest: Hash of the target's weights, 16 hex digits.
        draft_digest: Hash of the draft's weights, 16 hex digits.
        tokenizer_digest: Hash of the vocabulary, 16 hex digits.
        corpus: Name of the corpus of the prompts.
        prompts_digest: Hash of the prompts' tokens, 16 hex digits.
        temperature: Sampling temperature of both models; 0 takes the most likely token.
        top_p: Probability mass that sampling keeps, above 0, at most 1.
        seed: Random seed of the texts and blocks.
    """

    target: str
    draft: str
    target_digest: str
    draft_digest: str
    tokenizer_digest: str
    corpus: str
    prompts_digest: str
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def check(self, expected: Origin) -> None:
        """Check that a trace is of the expected models, tokenizer, corpus and sampling.

        Raises:
            UserError: It is not; the first difference is named.
        """
        for part in fields(self):
            found = getattr(self, part.name)
            wanted = getattr(expected, part.name)
            if found != wanted:
                raise UserError(
                    f"expected a trace of {expected.target} with {expected.draft} on "
                    f"{expected.corpus}, found one of {self.target} with {self.draft} on "
                    f"{self.corpus} whose {part.name} is {found!r}, not {wanted!r}; record a new "
                    "trace of this pair"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """Texts of R rows and N positions with the probabilities of both models, top k of each.

    p is the target's distribution after the text before a position, q the draft's, both with the
    sampling of the trace. A block is what the draft samples from a position on, D tokens. At every
    `stride`-th position, S in all, a second block follows each possible end of the first: m of its
    tokens and one of the target, m from 0 to D. Confidences and `nats` are of the softmax at
    temperature 1 with all tokens, as the thresholds of `Settings` are.

    Attributes:
        origin: Models, text and sampling.
        stride: Distance between positions with second blocks, at least 1.
        tokens: Sampled text, int32 [R, N].
        p_ids: Most probable tokens of the target, int32 [R, N, k].
        p_top: Their probabilities, float16 [R, N, k], falling.
        p_tail: Probability of all other tokens, float16 [R, N].
        q_ids: Most probable tokens of the draft, int32 [R, N, k].
        q_top: Their probabilities, float16 [R, N, k], falling.
        q_tail: Probability of all other tokens, float16 [R, N].
        p_text: Natural logarithm of the target's probability of the text's token, float32 [R, N].
        q_text: Natural logarithm of the draft's probability of the text's token, float32 [R, N].
        overlap: Σ min(p, q) over the whole vocabulary, float32 [R, N].
        entropy: Entropy of the draft, nats, float32 [R, N].
        p_entropy: Entropy of the target, nats, float32 [R, N].
        block_top: Largest probability of the draft before each token of a block, float16
            [R, N, D].
        block_q: Natural logarithm of the draft's probability of each token of a block, float16
            [R, N, D].
        block_p: Natural logarithm of the target's probability of each token of a block, float16
            [R, N, D].
        block_nats: −ln p_target of each token of a block, which the lossy rule compares with its
            threshold, float16 [R, S, D]; 0 where the target's own choice is the token for certain.
        block_distance: Total-variation distance between the target and a token of a block under the
            lossy rule, at each of `ROLLBACKS`, float16 [R, S, D, G].
        second_top: Largest probability of the draft before each token of a second block, float16
            [R, S, D + 1, D].
        second_nats: −ln p_target of each token of a second block, float16 [R, S, D + 1, D].
        prompt_repeats: Share of each prompt's token pairs that occurred before in it, float32 [R].
    """

    origin: Origin
    stride: int
    tokens: Ints = field(repr=False)
    p_ids: Ints = field(repr=False)
    p_top: Floats = field(repr=False)
    p_tail: Floats = field(repr=False)
    q_ids: Ints = field(repr=False)
    q_top: Floats = field(repr=False)
    q_tail: Floats = field(repr=False)
    p_text: Floats = field(repr=False)
    q_text: Floats = field(repr=False)
    overlap: Floats = field(repr=False)
    entropy: Floats = field(repr=False)
    p_entropy: Floats = field(repr=False)
    block_top: Floats = field(repr=False)
    block_q: Floats = field(repr=False)
    block_p: Floats = field(repr=False)
    block_nats: Floats = field(repr=False)
    block_distance: Floats = field(repr=False)
    second_top: Floats = field(repr=False)
    second_nats: Floats = field(repr=False)
    prompt_repeats: Floats = field(repr=False)

    def __post_init__(self) -> None:
        whole("stride", self.stride, least=1)
        for name, (kind, shape) in self.layout().items():
            found = getattr(self, name)
            if found.shape != shape or found.dtype != kind:
                raise UserError(
                    f"{name} of a trace must be {kind} {list(shape)}, found {found.dtype} "
                    f"{list(found.shape)}; record the trace again"
                )

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of each array, as they follow from `tokens` and two others."""
        rows, positions = self.tokens.shape
        depth = self.block_top.shape[-1]
        top = self.p_ids.shape[-1]
        starts = len(range(0, positions, self.stride))
        text = (rows, positions)
        block = (rows, starts, depth)
        second = (rows, starts, depth + 1, depth)
        return {
            "tokens": ("int32", text),
            "p_ids": ("int32", (*text, top)),
            "p_top": ("float16", (*text, top)),
            "p_tail": ("float16", text),
            "q_ids": ("int32", (*text, top)),
            "q_top": ("float16", (*text, top)),
            "q_tail": ("float16", text),
            "p_text": ("float32", text),
            "q_text": ("float32", text),
            "overlap": ("float32", text),
            "entropy": ("float32", text),
            "p_entropy": ("float32", text),
            "block_top": ("float16", (*text, depth)),
            "block_q": ("float16", (*text, depth)),
            "block_p": ("float16", (*text, depth)),
            "block_nats": ("float16", block),
            "block_distance": ("float16", (*block, len(ROLLBACKS))),
            "second_top": ("float16", second),
            "second_nats": ("float16", second),
            "prompt_repeats": ("float32", (rows,)),
        }

    @property
    def rows(self) -> int:
        """Number of texts, R."""
        return int(self.tokens.shape[0])

    @property
    def positions(self) -> int:
        """Number of tokens in each text, N."""
        return int(self.tokens.shape[1])

    @property
    def depth(self) -> int:
        """Number of tokens in each block, D; the greatest draft length that can be replayed."""
        return int(self.block_top.shape[2])

    @property
    def acceptance(self) -> float:
        """Mean of Σ min(p, q): the chance that a draft token is accepted under the exact rule."""
        return float(self.overlap.mean(dtype=np.float64))

    @cached_property
    def matched(self) -> tuple[Floats, Floats]:
        """Draft's probability of the target's listed tokens, and the other way; 0 if not listed.

        Both are float32 [R, N, k].
        """
        same = self.p_ids[..., :, None] == self.q_ids[..., None, :]  # [R, N, k, k]
        q_at_p = np.where(same, self.q_top.astype(np.float32)[..., None, :], 0).sum(-1)
        p_at_q = np.where(same, self.p_top.astype(np.float32)[..., :, None], 0).sum(-2)
        return q_at_p, p_at_q

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the trace by name; the first axis of each has the rows."""
        return {name: getattr(self, name) for name in self.layout()}

    def select(self, rows: Sequence[int] | Ints) -> Trace:
        """Return a trace of some rows, in the order given."""
        chosen = np.asarray(rows)
        arrays: dict[str, Any] = {name: array[chosen] for name, array in self.arrays().items()}
        return replace(self, **arrays)

    @classmethod
    def joined(cls, parts: Sequence[Trace]) -> Trace:
        """Return a trace of the rows of all parts, which have one origin."""
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in parts[0].layout()
        }
        return replace(parts[0], **arrays)


def overlap_bounds(trace: Trace) -> tuple[Floats, Floats]:
    """Return a lower and an upper bound of Σ min(p, q) from the top k alone, float64 [R, N].

    The lower bound adds min(p, q) over the tokens in both lists. A token in only one list has at
    most the least listed probability of the other model, and all such tokens together at most the
    other model's tail; the tokens in neither list add at most the smaller tail.
    """
    q_at_p, p_at_q = trace.matched
    p = trace.p_top.astype(np.float64)
    q = trace.q_top.astype(np.float64)
    p_tail = trace.p_tail.astype(np.float64)
    q_tail = trace.q_tail.astype(np.float64)
    lower = np.minimum(p, q_at_p).sum(-1, dtype=np.float64)
    only_p = (np.minimum(p, q[..., -1:]) * (q_at_p == 0)).sum(-1)
    only_q = (np.minimum(q, p[..., -1:]) * (p_at_q == 0)).sum(-1)
    upper = lower + np.minimum(only_p, q_tail) + np.minimum(only_q, p_tail)
    return lower, np.minimum(upper + np.minimum(p_tail, q_tail), 1.0)
