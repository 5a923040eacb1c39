"""A synthetic model pair whose next token depends on the last one only, and its trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.decoding.traces.measure import lossy_distances, of_text
from trainenv.decoding.traces.trace import Floats, Ints, Origin, Trace
from trainenv.tools import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticPair:
    """Two Markov chains over a small vocabulary: a target, and a draft that is a noisy copy.

    Attributes:
        vocabulary: Number of tokens, at least 2.
        sharpness: Standard deviation of the target's logits; larger means easier text.
        noise: Standard deviation of the draft's error in its logits; 0 makes both models equal.
        seed: Random seed of the chains.
    """

    vocabulary: int = 64
    sharpness: float = 2.5
    noise: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole("vocabulary", self.vocabulary, least=2)
        checks.number("sharpness", self.sharpness, least=0)
        checks.number("noise", self.noise, least=0)

    @property
    def name(self) -> str:
        """Name of the pair in traces."""
        return f"chain {self.vocabulary}/{self.sharpness:g}/{self.noise:g}/{self.seed}"

    def tables(self) -> tuple[Floats, Floats]:
        """Return the target's and the draft's next-token probabilities, float64 [V, V] each."""
        generator = np.random.default_rng([self.seed, 1])
        shape = (self.vocabulary, self.vocabulary)
        # Some contexts are easy and some are hard, as in text.
        scale = self.sharpness * generator.uniform(0.3, 1.7, (self.vocabulary, 1))
        logits = scale * generator.standard_normal(shape)
        return _softmax(logits), _softmax(logits + self.noise * generator.standard_normal(shape))


def synthetic_trace(
    pair: SyntheticPair | None = None,
    *,
    rows: int = 16,
    positions: int = 128,
    depth: int = 16,
    top_k: int = 16,
    stride: int = 8,
    seed: int = 0,
) -> Trace:
    """Record a trace of a synthetic pair.

    Args:
        pair: Pair of Markov chains; a standard one by default.
        rows: Number of texts, R.
        positions: Tokens in each text, N.
        depth: Tokens in each block, D.
        top_k: Probabilities that are kept of each distribution.
        stride: Distance between positions with second blocks.
        seed: Random seed of texts and blocks.
    """
    pair = pair or SyntheticPair()
    target, draft = pair.tables()
    generator = np.random.default_rng([seed, 2])
    last: Ints = generator.integers(pair.vocabulary, size=rows)
    prefixes = np.empty((rows, positions), np.int64)  # last token before each position
    tokens = np.empty((rows, positions), np.int64)
    for position in range(positions):
        prefixes[:, position] = last
        last = _sample(target[last], generator)
        tokens[:, position] = last
    paths = _paths(draft, prefixes, depth, generator)  # [R, N, D + 1]
    before = paths[..., :-1]
    after = paths[..., 1:]
    ends = paths[:, ::stride]  # [R, S, D + 1]
    seconds = _paths(draft, _sample(target[ends], generator), depth, generator)
    nats = -np.log(target)
    distances = lossy_distances(target, draft, target)  # [V, G]
    origin = Origin(
        target=f"{pair.name} target",
        draft=f"{pair.name} draft",
        target_digest="0" * 16,
        draft_digest="0" * 16,
        tokenizer_digest="0" * 16,
        corpus="synthetic",
        prompts_digest="0" * 16,
        seed=seed,
    )
    top = draft.max(-1)
    return Trace(
        origin=origin,
        stride=stride,
        block_top=top[before].astype(np.float16),
        block_q=np.log(draft[before, after]).astype(np.float16),
        block_p=np.log(target[before, after]).astype(np.float16),
        block_nats=nats[before, after][:, ::stride].astype(np.float16),
        block_distance=distances[before[:, ::stride]],
        second_top=top[seconds[..., :-1]].astype(np.float16),
        second_nats=nats[seconds[..., :-1], seconds[..., 1:]].astype(np.float16),
        prompt_repeats=np.zeros(rows, np.float32),
        **of_text(tokens, target[prefixes], draft[prefixes], min(top_k, pair.vocabulary)),
    )


def _paths(draft: Floats, last: Ints, depth: int, generator: np.random.Generator) -> Ints:
    """Return what the draft samples after tokens [...], with these tokens first, [..., D + 1]."""
    paths = np.empty((*last.shape, depth + 1), np.int64)
    paths[..., 0] = last
    for place in range(depth):
        paths[..., place + 1] = _sample(draft[paths[..., place]], generator)
    return paths


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    normalised: Floats = weights / weights.sum(-1, keepdims=True)
    return normalised


def _sample(probabilities: Floats, generator: np.random.Generator) -> Ints:
    """Sample the last axis of an array of distributions."""
    drawn = generator.random((*probabilities.shape[:-1], 1))
    chosen: Ints = (probabilities.cumsum(-1) < drawn).sum(-1)
    return np.minimum(chosen, np.int64(probabilities.shape[-1] - 1))
