"""Replay of traces against an independent simulation of speculative decoding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainenv.decoding.traces import (
    CostModel,
    Settings,
    SyntheticPair,
    blocks_of,
    overlap_bounds,
    replay,
    sweep,
    synthetic_trace,
)
from trainenv.decoding.traces.replay import interpolated
from trainenv.types import UserError

COSTS = CostModel(target_call=(1.0, 1.1, 1.15), draft_step=0.1, block=0.05)
PAIR = SyntheticPair(vocabulary=24, noise=1.5)


def decode(
    pair: SyntheticPair, settings: Settings, rule: str, texts: int, length: int
) -> np.ndarray:
    """Calls, drafted, looks, accepted and judged tokens of each text, decoded token by token."""
    p, q = pair.tables()
    generator = np.random.default_rng(7)
    counts = np.zeros((texts, 5))
    for text in range(texts):
        last = int(generator.integers(pair.vocabulary))
        done = 0
        while done < length:
            room = min(settings.k, length - done - 1)
            drafted: list[int] = []
            looks = 0
            tip = last
            while len(drafted) < room:
                looks += 1
                if q[tip].max() < settings.fallback_threshold:
                    break
                tip = int(generator.choice(pair.vocabulary, p=q[tip]))
                drafted.append(tip)
            accepted = 0
            tip = last
            emitted = None
            for token in drafted:
                if rule == "exact":
                    good = generator.random() * q[tip, token] < p[tip, token]
                    other = np.maximum(p[tip] - q[tip], 0)
                else:
                    good = -np.log(p[tip, token]) <= settings.rollback_threshold
                    other = p[tip]
                if not good:
                    emitted = int(generator.choice(pair.vocabulary, p=other / other.sum()))
                    break
                accepted += 1
                tip = token
            judged = min(accepted + 1, len(drafted))
            if emitted is None:
                emitted = int(generator.choice(pair.vocabulary, p=p[tip]))
            last = emitted
            done += accepted + 1
            counts[text] += (1, len(drafted), looks, accepted, judged)
    return counts


@pytest.mark.parametrize(
    ("rule", "settings", "slack"),
    [
        ("exact", Settings(fallback_threshold=0.0, k=4), 0.0),
        ("exact", Settings(fallback_threshold=0.35, k=8), 0.0),
        ("exact", Settings(fallback_threshold=0.7, k=16), 0.0),
        # The text before the last block is the target's: an error of a few per cent.
        ("lossy", Settings(fallback_threshold=0.35, rollback_threshold=2.0, k=8), 0.02),
        ("lossy", Settings(fallback_threshold=0.0, rollback_threshold=4.0, k=4), 0.02),
    ],
)
def test_counts_of_a_replay_are_those_of_decoding(
    rule: str, settings: Settings, slack: float
) -> None:
    length = 60
    decoded = decode(PAIR, settings, rule, 150, length)
    trace = synthetic_trace(PAIR, rows=300, positions=length, seed=3)
    blocks = blocks_of(trace, settings, rule)
    texts = len(blocks.starts)
    replayed = np.array(
        [
            blocks.starts.sum() / texts,
            (blocks.starts * blocks.lengths).sum() / texts,
            (blocks.starts * blocks.looks).sum() / texts,
            blocks.accepted / texts,
            blocks.reached / texts,
        ]
    )
    real = decoded.mean(0)
    # Both sides are samples; a replay varies less than decoding does.
    error = decoded.std(0) * np.sqrt(1 / len(decoded) + 1 / trace.rows)
    assert np.all(np.abs(replayed - real) <= 4 * error + slack * real), (replayed, real, error)


def test_acceptance_is_the_overlap_of_the_distributions() -> None:
    p, q = PAIR.tables()
    trace = synthetic_trace(PAIR, rows=64)
    drawn = np.exp(np.minimum(trace.p_text, trace.q_text)).mean()  # the biased estimate
    exact = np.minimum(p, q).sum(-1).mean()
    assert trace.acceptance == pytest.approx(exact, abs=0.06)
    assert drawn < 0.7 * exact
    lower, upper = overlap_bounds(trace)
    assert np.all(lower <= trace.overlap + 2e-3)
    assert np.all(trace.overlap <= upper + 2e-3)
    whole_lower, whole_upper = overlap_bounds(synthetic_trace(PAIR, rows=64, top_k=24))
    assert np.abs(whole_lower - trace.overlap).max() < 2e-3
    assert np.abs(whole_upper - trace.overlap).max() < 2e-3


def test_constant_overlap_gives_the_known_tokens_per_call() -> None:
    k = 5
    trace = synthetic_trace(PAIR, rows=40, positions=2000)
    alpha = 0.7
    constant = replace(
        trace,
        p_text=np.zeros_like(trace.p_text),
        q_text=np.full_like(trace.q_text, np.log(alpha)),
        overlap=np.full_like(trace.overlap, alpha),
    )
    found = replay(constant, Settings(fallback_threshold=0, k=k), COSTS)
    assert found.tokens_per_call == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha), rel=2e-3)
    assert found.acceptance == pytest.approx(alpha)


def test_equal_models_waste_nothing() -> None:
    trace = synthetic_trace(SyntheticPair(noise=0.0), rows=8, positions=120)
    found = replay(trace, Settings(fallback_threshold=0, k=5), COSTS)
    assert found.acceptance == pytest.approx(1)
    assert found.wasted == pytest.approx(0)
    assert found.tokens_per_call == pytest.approx(6)
    assert interpolated(trace.block_distance, 3.3).max() < 0.6


def test_limits_of_the_thresholds() -> None:
    trace = synthetic_trace(PAIR, rows=8)
    alone = replay(trace, Settings(fallback_threshold=1.01, k=5), COSTS)
    assert alone.tokens_per_call == 1
    assert alone.time_per_token == pytest.approx(1.0 + 0.05)
    all_kept = Settings(fallback_threshold=0, rollback_threshold=60, k=5)
    assert replay(trace, all_kept, COSTS, "lossy").wasted == 0
    first = interpolated(trace.block_distance, 60)[:, :, 0]
    assert np.allclose(first, 1 - trace.overlap[:, :: trace.stride], atol=2e-3)
    none_kept = Settings(fallback_threshold=0, rollback_threshold=0, k=5)
    assert replay(trace, none_kept, COSTS, "lossy").tokens_per_call == pytest.approx(1, abs=1e-6)
    assert replay(trace, none_kept, COSTS, "lossy").distance == pytest.approx(0, abs=1e-3)


def test_replay_repeats_bit_for_bit() -> None:
    settings = [Settings(fallback_threshold=f, k=k) for f in (0.1, 0.5) for k in (1, 7, 16)]
    first = sweep(synthetic_trace(PAIR, seed=5), settings, COSTS)
    assert sweep(synthetic_trace(PAIR, seed=5), settings, COSTS) == first
    assert len(set(first)) == len(first)


def test_cost_model_extends_its_table() -> None:
    assert COSTS.calls(np.array([1, 3, 5])) == pytest.approx([1.0, 1.15, 1.25])
    assert CostModel.of_ratio(0.25, per_token=0.1).calls(np.array([4])) == pytest.approx([1.3])
    with pytest.raises(UserError, match="target_call"):
        CostModel(target_call=(), draft_step=1)
    with pytest.raises(UserError, match="draft_step"):
        CostModel(target_call=(1.0,), draft_step=-1)


def test_blocks_that_are_too_short_are_refused() -> None:
    with pytest.raises(UserError, match="depth of the trace's blocks, 4, found 5"):
        replay(synthetic_trace(PAIR, depth=4, rows=2), Settings(k=5), COSTS)


def test_trace_of_another_pair_is_refused() -> None:
    trace = synthetic_trace(PAIR, rows=2, positions=8)
    trace.origin.check(trace.origin)
    other = replace(trace.origin, draft="another")
    with pytest.raises(UserError, match="whose draft is"):
        trace.origin.check(other)
