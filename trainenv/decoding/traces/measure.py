"""From whole next-token distributions to the arrays of a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.decoding.traces.trace import ROLLBACKS, Floats, Ints


def of_text(tokens: Ints, p: Floats, q: Floats, top_k: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a trace that belong to the text.

    Args:
        tokens: Sampled text, an integer array [R, N].
        p: Distributions of the target, [R, N, V].
        q: Distributions of the draft, [R, N, V].
        top_k: Probabilities to keep of each distribution.
    """
    p_ids, p_top, p_tail = largest(p, top_k)
    q_ids, q_top, q_tail = largest(q, top_k)
    return {
        "tokens": tokens.astype(np.int32),
        "p_ids": p_ids,
        "p_top": p_top,
        "p_tail": p_tail,
        "q_ids": q_ids,
        "q_top": q_top,
        "q_tail": q_tail,
        "p_text": log_of(p, tokens).astype(np.float32),
        "q_text": log_of(q, tokens).astype(np.float32),
        "overlap": np.minimum(p, q).sum(-1).astype(np.float32),
        "entropy": entropy(q),
        "p_entropy": entropy(p),
    }


def log_of(distributions: Floats, tokens: Ints) -> Floats:
    """Return the natural logarithm of the probability of tokens [...] in distributions [..., V]."""
    chosen = np.take_along_axis(distributions, tokens[..., None].astype(np.int64), -1)[..., 0]
    with np.errstate(divide="ignore"):
        logs: Floats = np.log(chosen)
    return logs


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


def lossy_distances(p: Floats, q: Floats, raw: Floats) -> Floats:
    """Return ½ Σ |e − p| of a drafted token under the lossy rule, at each of `ROLLBACKS`, [..., G].

    A draft token y is kept if −ln p_target(y) is at most the threshold; else the target samples.
    Its law is e = q·[kept] + ρ·p, where ρ is the mass of q that is refused.

    Args:
        p: Distributions of the target as it is sampled from, [..., V].
        q: Distributions of the draft as it is sampled from, [..., V].
        raw: Distributions of the target at temperature 1 with all tokens, [..., V].
    """
    each = []
    for threshold in ROLLBACKS:
        kept = np.where((raw >= np.exp(-threshold)) | (p >= 1), q, 0)
        each.append(0.5 * np.abs(kept - kept.sum(-1, keepdims=True) * p).sum(-1))
    return np.stack(each, -1).astype(np.float16)
