"""From whole next-token distributions to the arrays of a trace."""

from __future__ import annotations

import numpy as np

from trainenv.decoding.traces.trace import ROLLBACKS, Floats, Ints, Origin, Trace


def measured(
    *,
    origin: Origin,
    tokens: Ints,
    p: Floats,
    q: Floats,
    block_top: Floats,
    block_q: Floats,
    block_p: Floats,
    prompt_lengths: Ints,
    prompt_repeats: Floats,
    top_k: int,
) -> Trace:
    """Return a trace made of whole distributions.

    Args:
        origin: Models, text and sampling.
        tokens: Sampled text, an integer array [R, N].
        p: Distributions of the target, [R, N, V].
        q: Distributions of the draft, [R, N, V].
        block_top: Largest probability of the draft before each token of a block, [R, N, D].
        block_q: Natural logarithm of the draft's probability of each token of a block, [R, N, D].
        block_p: Natural logarithm of the target's probability of each token of a block, [R, N, D].
        prompt_lengths: Length of each row's prompt, tokens, [R].
        prompt_repeats: Share of each prompt's token pairs that occurred before in it, [R].
        top_k: Probabilities to keep of each distribution.
    """
    p_ids, p_top, p_tail = largest(p, top_k)
    q_ids, q_top, q_tail = largest(q, top_k)
    chosen = tokens[..., None].astype(np.int64)
    with np.errstate(divide="ignore"):
        p_text = np.log(np.take_along_axis(p, chosen, -1)[..., 0])
        q_text = np.log(np.take_along_axis(q, chosen, -1)[..., 0])
    return Trace(
        origin=origin,
        tokens=tokens.astype(np.int32),
        p_ids=p_ids,
        p_top=p_top,
        p_tail=p_tail,
        q_ids=q_ids,
        q_top=q_top,
        q_tail=q_tail,
        p_text=p_text.astype(np.float32),
        q_text=q_text.astype(np.float32),
        overlap=np.minimum(p, q).sum(-1).astype(np.float32),
        entropy=entropy(q),
        p_entropy=entropy(p),
        lossy=np.stack([lossy_distance(p, q, each) for each in ROLLBACKS], -1).astype(np.float16),
        surplus=np.stack([surplus(p, q, each) for each in ROLLBACKS], -1).astype(np.float16),
        block_top=block_top.astype(np.float32),
        block_q=block_q.astype(np.float16),
        block_p=block_p.astype(np.float32),
        prompt_lengths=prompt_lengths.astype(np.int32),
        prompt_repeats=prompt_repeats.astype(np.float32),
    )


def largest(distributions: Floats, top_k: int) -> tuple[Ints, Floats, Floats]:
    """Return ids and probabilities of the top k, falling, and the mass of all others.

    Args:
        distributions: Probabilities, [..., V].
        top_k: Number of tokens, at most V.

    Returns:
        Ids, int32 [..., k]; probabilities, float16 [..., k]; tail, float16 [...].
    """
    # Stable, so that equal probabilities have one order on every machine.
    order = np.argsort(-distributions, axis=-1, kind="stable")[..., :top_k]
    top = np.take_along_axis(distributions, order, -1)
    tail = np.maximum(1.0 - top.sum(-1, dtype=np.float64), 0.0)
    return order.astype(np.int32), top.astype(np.float16), tail.astype(np.float16)


def entropy(distributions: Floats) -> Floats:
    """Return the entropy of distributions [..., V] in nats, float32 [...]."""
    logs = np.log(np.maximum(distributions, np.finfo(np.float32).tiny))
    nats: Floats = -(distributions * logs).sum(-1)
    return nats.astype(np.float32)


def lossy_distance(p: Floats, q: Floats, rollback_threshold: float) -> Floats:
    """Return ½ Σ |e − p| of the law e of a drafted token under the lossy rule, [...].

    A draft token y is kept if −log p(y) ≤ r; else the target samples. Hence e = q·[kept] + ρ·p,
    where ρ is the mass of q that is refused.

    Args:
        p: Distributions of the target, [..., V].
        q: Distributions of the draft, [..., V].
        rollback_threshold: Threshold r, nats.
    """
    kept = np.where(p >= np.exp(-rollback_threshold), q, 0)
    distance: Floats = 0.5 * np.abs(kept - kept.sum(-1, keepdims=True) * p).sum(-1)
    return distance


def surplus(p: Floats, q: Floats, rollback_threshold: float) -> Floats:
    """Return the mass of (q − p)₊ on tokens that the lossy rule keeps, [...].

    Args:
        p: Distributions of the target, [..., V].
        q: Distributions of the draft, [..., V].
        rollback_threshold: Threshold, nats.
    """
    kept = p >= np.exp(-rollback_threshold)
    mass: Floats = np.where(kept, np.maximum(q - p, 0), 0).sum(-1)
    return mass
