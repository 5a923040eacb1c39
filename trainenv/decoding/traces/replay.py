"""Replay of speculative decoding on a trace: expected speed and exactness of any settings.

Exact rule. The emitted text has the law of the target, so it is the trace's text. Given the next
token x of the text, the draft's token was accepted with probability min(1, q(x) / p(x)), and what
was accepted is x. The drafted length of a block depends on the draft's own path only, and the
blocks of the trace are such paths. Both together give the expected value of every count, without
sampling and without an approximation:

    P(a block begins at t)   by one pass over the positions, `chain`
    drafted tokens           Σ_t P(a block begins at t) · length of the trace's block at t

Lossy rule. The same pass, with draft and text coupled: given x, the draft's token was x with
probability min(1, q(x) / p(x)), else it has the law (q − p)₊. A kept token that differs from x
leads to another text; the pass goes on along the trace's. This is the one approximation, and it
matters where much of (q − p)₊ is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainenv.decoding.traces.costs import CostModel
from trainenv.decoding.traces.settings import Settings
from trainenv.decoding.traces.trace import ROLLBACKS, Floats, Ints, Trace
from trainenv.types import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Expected result of decoding with some settings.

    Attributes:
        time_per_token: Seconds for each token of the text.
        speedup: Time of the target without a draft, divided by `time_per_token`.
        acceptance: Chance that a draft token that the target reached is accepted, 0 to 1.
        tokens_per_call: Tokens of the text for each call of the target.
        drafted_per_call: Draft tokens given to the target in each call.
        wasted: Share of the draft tokens that did not enter the text, 0 to 1.
        distance: Mean total-variation distance between the distribution of a token and the
            target's, 0 to 1; 0 for an exact rule.
        tokens: Tokens of text that were replayed.
    """

    time_per_token: float
    speedup: float
    acceptance: float
    tokens_per_call: float
    drafted_per_call: float
    wasted: float
    distance: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """Expected blocks of a replay.

    Attributes:
        starts: Probability that a block begins at a position, float64 [R, N].
        lengths: Tokens that the draft gives to the target from a position on, int64 [R, N].
        looks: Draft steps of that block; one more than `lengths` where the last drafted token was
            dropped unseen.
        accepted: Draft tokens that entered the text, over all rows.
        reached: Draft tokens that the target judged, over all rows.
        agreed: Expected number of them that it accepts.
        distance: Sum of the total-variation distances of all tokens.
    """

    starts: Floats
    lengths: Ints
    looks: Ints
    accepted: float
    reached: float
    agreed: float
    distance: float


def replay(trace: Trace, settings: Settings, costs: CostModel) -> Score:
    """Score settings on a trace, deterministic to the bit.

    Args:
        trace: Trace of the model pair.
        settings: Rule, thresholds and draft length.
        costs: Times of the model pair.

    Raises:
        UserError: The draft length is greater than the depth of the trace's blocks.
    """
    return score(blocks_of(trace, settings), costs, pipelined=settings.rule == "pipelined")


def sweep(trace: Trace, settings: Sequence[Settings], costs: CostModel) -> list[Score]:
    """Score many settings on a trace, in their order."""
    return [replay(trace, each, costs) for each in settings]


def blocks_of(trace: Trace, settings: Settings) -> Blocks:
    """Return the expected blocks of a replay, from which costs make times."""
    check_depth(trace, settings.k)
    stops = trace.block_top[..., : settings.k] < settings.fallback_threshold
    stops_text = stops[..., 0]
    if settings.rule != "lossy":
        return exact_blocks(trace, stops=stops, stops_text=stops_text, k=settings.k)
    same = coupled(trace)
    threshold = settings.rollback_threshold
    differs = np.maximum(1.0 - trace.overlap.astype(np.float64), 1e-6)
    other = np.minimum(interpolated(trace.surplus, threshold) / differs, 1.0)
    keeps = same * (trace.p_text >= -threshold) + (1 - same) * other
    return chain(
        stops=stops,
        stops_text=stops_text,
        k=settings.k,
        keeps=keeps,
        agrees=keeps,
        distance=interpolated(trace.lossy, threshold),
    )


def check_depth(trace: Trace, k: int) -> None:
    """Check that a trace has blocks of k tokens."""
    if k > trace.depth:
        raise UserError(
            f"k must be at most the depth of the trace's blocks, {trace.depth}, found {k}; "
            "record a deeper trace or give a smaller k"
        )


def score(blocks: Blocks, costs: CostModel, *, pipelined: bool = False) -> Score:
    """Return the score of expected blocks at given costs.

    Args:
        blocks: Result of `blocks_of` or `exact_blocks`.
        costs: Times of the model pair.
        pipelined: Flag: two devices, of which one drafts the next block while the other verifies.
    """
    tokens = blocks.starts.size
    calls = float(blocks.starts.sum())
    drafted = float((blocks.starts * blocks.lengths).sum())
    target = float((blocks.starts * costs.calls(blocks.lengths + 1)).sum())
    draft = float((blocks.starts * blocks.looks).sum()) * costs.draft_step
    seconds = target + draft + calls * costs.block
    time_per_token = seconds / tokens
    return Score(
        time_per_token=time_per_token,
        speedup=costs.target_only / time_per_token,
        acceptance=_share(blocks.agreed, blocks.reached),
        tokens_per_call=tokens / calls,
        drafted_per_call=drafted / calls,
        wasted=1 - _share(blocks.accepted, drafted),
        distance=blocks.distance / tokens,
        tokens=tokens,
    )


def exact_blocks(
    trace: Trace, *, stops: NDArray[np.bool_], stops_text: NDArray[np.bool_], k: int
) -> Blocks:
    """Return the expected blocks of the exact rule with any stopping rule of the draft.

    Args:
        trace: Trace of the model pair.
        stops: True where the draft stops before a token of a block, bool [R, N, ≥ k]. It may depend
            on the draft's path, not on the target's.
        stops_text: The same rule before each token of the text, bool [R, N].
        k: Greatest number of draft tokens in a block.
    """
    return chain(
        stops=stops,
        stops_text=stops_text,
        k=k,
        keeps=coupled(trace),
        agrees=trace.overlap,
        distance=np.zeros(1),
    )


def coupled(trace: Trace) -> Floats:
    """Return min(1, q(x) / p(x)) of the text's tokens, float64 [R, N]."""
    ratio: Floats = np.exp(np.minimum(trace.q_text - trace.p_text, 0).astype(np.float64))
    return ratio


def chain(
    *,
    stops: NDArray[np.bool_],
    stops_text: NDArray[np.bool_],
    k: int,
    keeps: Floats,
    agrees: Floats,
    distance: Floats,
) -> Blocks:
    """Return the expected blocks of a rule, by one pass over the positions.

    Args:
        stops: True where the draft stops before a token of a block, bool [R, N, ≥ k].
        stops_text: True where it stops before a token of the text, bool [R, N].
        k: Greatest number of draft tokens in a block.
        keeps: Probability that the drafted token is kept, given the text's token, [R, N].
        agrees: The same, given only the text before the token, [R, N].
        distance: Total-variation distance of a drafted token to the target, [R, N] or [1].
    """
    rows, positions = stops_text.shape
    lengths, looks = block_lengths(stops, k)
    drafts = ~stops_text.T  # [N, R]
    # The last token of a text is never drafted: the target gives it.
    drafts[-1] = False
    weights = drafts * keeps.T
    # state[j]: probability that j tokens of the current block are kept so far, [k + 1, R].
    state = np.zeros((k + 1, rows))
    state[0] = 1.0
    following = np.empty_like(state)
    starts = np.empty((positions, rows))
    reached = np.empty((positions, rows))
    for position in range(positions):
        starts[position] = state[0]
        np.subtract(1.0, state[k], out=reached[position])
        np.multiply(state[:k], weights[position], out=following[1:])
        np.subtract(1.0, following[1:].sum(0), out=following[0])
        state, following = following, state
    reached *= drafts
    return Blocks(
        starts=np.ascontiguousarray(starts.T),
        lengths=lengths,
        looks=looks,
        accepted=float((reached * keeps.T).sum()),
        reached=float(reached.sum()),
        agreed=float((reached * agrees.T).sum()),
        distance=float((reached * distance.T).sum()),
    )


def block_lengths(stops: NDArray[np.bool_], k: int) -> tuple[Ints, Ints]:
    """Return tokens and draft steps of each block, int64 [R, N] each.

    A block that comes near the end of the text is cut, so that it and the target's token end there.

    Args:
        stops: True where the draft stops before a token, bool [R, N, ≥ k].
        k: Greatest number of draft tokens in a block.
    """
    stops = stops[..., :k]
    positions = stops.shape[1]
    room = np.minimum(k, positions - 1 - np.arange(positions))  # [N]
    first = np.where(stops.any(-1), stops.argmax(-1), k)
    lengths = np.minimum(first, room)
    looks = np.minimum(first + 1, room)
    return lengths, looks


def interpolated(recorded: Floats, threshold: float) -> Floats:
    """Return what is recorded at each of `ROLLBACKS` at a threshold between, float64 [R, N].

    Args:
        recorded: Values at each of `ROLLBACKS`, [R, N, G].
        threshold: Rollback threshold, nats.
    """
    after = int(np.searchsorted(ROLLBACKS, threshold))
    if after == 0:
        return recorded[..., 0].astype(np.float64)
    if after == len(ROLLBACKS):
        return recorded[..., -1].astype(np.float64)
    low = ROLLBACKS[after - 1]
    weight = (threshold - low) / (ROLLBACKS[after] - low)
    below = recorded[..., after - 1].astype(np.float64)
    return below + weight * (recorded[..., after] - below)


def _share(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0
    return part / whole
