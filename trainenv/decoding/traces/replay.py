"""Replay of speculative decoding on a trace: expected speed and exactness of any settings.

Exact rule. The emitted text has the law of the target, so it is the trace's text. Given the next
token x of the text, the draft's token was accepted with probability min(1, q(x) / p(x)), and what
was accepted is x. The drafted length of a block depends on the draft's own path only, and the
blocks of the trace are such paths. Both together give the expected value of every count, without
sampling and without an approximation:

    P(a block begins at t)   by one pass over the positions, `chain`
    drafted tokens           Σ_t P(a block begins at t) · length of the trace's block at t

Pipelined rule. The same pass; a draft of full length that was accepted, and whose next token is
accepted too, leaves the rest of what was drafted ahead. The length of what is drafted ahead is that
of the block at the text's next position, where the decoder's is at the draft's: this is the one
approximation, and it matters only where the draft takes longer than the target call.

Lossy rule. The text depends on the settings. What matters is how a block begins: after the end of a
block under the same rule. The trace has a second block after each possible end of a first block;
where the first ends follows from the settings, and the second gives the counts. Text before the
first block is the target's: this is the one approximation. A renewal process of such blocks gives
P(a block begins at t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainenv.decoding.contract import Settings
from trainenv.decoding.traces.costs import CostModel
from trainenv.decoding.traces.trace import ROLLBACKS, Floats, Ints, Trace
from trainenv.tools import checks
from trainenv.types import UserError

RULES = ("exact", "lossy", "pipelined")
"""Names of the rules that can be replayed, as in `trainenv.decoding.rules`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Expected result of decoding with some settings.

    Attributes:
        time_per_token: Seconds for each token of the text.
        speedup: Time of the target without a draft, divided by `time_per_token`.
        acceptance: Chance that a draft token is accepted where the tokens before it were, 0 to 1;
            under an exact rule the mean of Σ min(p, q) there.
        tokens_per_call: Tokens of the text for each call of the target.
        drafted_per_call: Draft tokens that the rule decides about in each call of the target.
        wasted: Share of these draft tokens that did not enter the text, 0 to 1.
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
    """Expected blocks of a replay, on R texts of N positions; a leading axis may tell two kinds.

    Attributes:
        starts: Probability that a block begins at a position, float64 [..., R, N].
        lengths: Tokens that the draft gives to the target from a position on, int64 [..., R, N].
        looks: Draft steps before the target call; one more than `lengths` where the last
            distribution ended the draft.
        ahead: Draft steps at the time of the target call; None for none.
        drafted: Draft tokens that the rule decided about; None for those of `lengths`.
        accepted: Draft tokens that entered the text, over all rows.
        reached: Draft tokens whose predecessors were all accepted, over all rows.
        agreed: Expected number of them that are accepted.
        distance: Sum of the total-variation distances of all tokens.
    """

    starts: Floats
    lengths: Ints
    looks: Ints
    accepted: float
    reached: float
    agreed: float
    distance: float = 0.0
    ahead: Ints | None = None
    drafted: float | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts."""
        rows, positions = self.starts.shape[-2:]
        return int(rows * positions)


def replay(trace: Trace, settings: Settings, costs: CostModel, rule: str = "exact") -> Score:
    """Score settings on a trace, deterministic to the bit.

    Args:
        trace: Trace of the model pair.
        settings: Thresholds and draft length.
        costs: Times of the model pair.
        rule: Rule of verification, one of `RULES`.

    Raises:
        UserError: The draft length is greater than the depth of the trace's blocks, or there is no
            such rule.
    """
    return score(blocks_of(trace, settings, rule), costs)


def sweep(
    trace: Trace, settings: Sequence[Settings], costs: CostModel, rule: str = "exact"
) -> list[Score]:
    """Score many settings on a trace, in their order; see `replay`."""
    return [replay(trace, each, costs, rule) for each in settings]


def blocks_of(trace: Trace, settings: Settings, rule: str = "exact") -> Blocks:
    """Return the expected blocks of a replay, from which costs make times."""
    checks.choice("rule", rule, RULES)
    check_depth(trace, settings.k)
    if rule == "lossy":
        return _lossy(trace, settings)
    stops = stops_below(trace.block_top, settings)
    keeps = coupled(trace)
    if rule == "pipelined":
        return _pipelined(trace, stops, keeps, settings)
    blocks = exact_blocks(trace, stops=stops, stops_text=stops[..., 0], k=settings.k)
    if settings.fallback_threshold > 1:  # the draft is never called
        return Blocks(
            starts=blocks.starts,
            lengths=blocks.lengths,
            looks=np.zeros_like(blocks.looks),
            accepted=0.0,
            reached=0.0,
            agreed=0.0,
        )
    return blocks


def check_depth(trace: Trace, k: int) -> None:
    """Check that a trace has blocks of k tokens."""
    if k > trace.depth:
        raise UserError(
            f"k must be at most the depth of the trace's blocks, {trace.depth}, found {k}; "
            "record a deeper trace or give a smaller k"
        )


def score(blocks: Blocks, costs: CostModel) -> Score:
    """Return the score of expected blocks at given costs.

    What is drafted ahead takes the time by which it is longer than the target call: the clock has
    two devices.
    """
    tokens = blocks.tokens
    calls = float(blocks.starts.sum())
    drafted = blocks.drafted
    if drafted is None:
        drafted = float((blocks.starts * blocks.lengths).sum())
    verifying = costs.calls(blocks.lengths + 1)
    if blocks.ahead is not None:
        verifying = np.maximum(verifying, blocks.ahead * costs.draft_step)
    target = float((blocks.starts * verifying).sum())
    draft = float((blocks.starts * blocks.looks).sum()) * costs.draft_step
    texts = blocks.starts.shape[-2]
    overhead = (
        calls * costs.block
        + float((blocks.starts * (blocks.looks > 0)).sum()) * costs.drafting
        + float((blocks.starts * (blocks.lengths > 0)).sum()) * costs.judging
        + texts * costs.prompt
    )
    time_per_token = (target + draft + overhead) / tokens
    alone = costs.target_only + costs.prompt * texts / tokens
    return Score(
        time_per_token=time_per_token,
        speedup=alone / time_per_token,
        acceptance=_share(blocks.agreed, blocks.reached),
        tokens_per_call=tokens / calls,
        drafted_per_call=drafted / calls,
        wasted=max(0.0, 1 - _share(blocks.accepted, drafted)),
        distance=blocks.distance / tokens,
        tokens=tokens,
    )


def stops_below(top: Floats, settings: Settings) -> NDArray[np.bool_]:
    """Return True where the draft's largest probability [..., ≥ K] ends a draft, bool [..., K]."""
    return top[..., : settings.k] < np.float32(settings.fallback_threshold)


def coupled(trace: Trace) -> Floats:
    """Return min(1, q(x) / p(x)) of the text's tokens, float64 [R, N]."""
    ratio: Floats = np.exp(np.minimum(trace.q_text - trace.p_text, 0).astype(np.float64))
    return ratio


# ── exact rules ───────────────────────────────────────────────────────────────────────────────────


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
    keeps = coupled(trace)
    starts, reached, _ = chain(stops_text, keeps, k)
    lengths, looks = block_lengths(stops, k)
    return Blocks(
        starts=starts,
        lengths=lengths,
        looks=looks,
        accepted=float((reached * keeps).sum()),
        reached=float(reached.sum()),
        agreed=float((reached * trace.overlap).sum()),
    )


def chain(
    stops_text: NDArray[np.bool_], keeps: Floats, k: int, *, ahead: bool = False
) -> tuple[Floats, Floats, Floats]:
    """Return the probabilities of the events at each position, by one pass over the positions.

    Args:
        stops_text: True where the draft stops before a token of the text, bool [R, N].
        keeps: Probability that a drafted token is accepted, given the text's token, [R, N].
        k: Greatest number of draft tokens in a block.
        ahead: True if a draft of full length continues while the target verifies.

    Returns:
        Probability that a fresh block begins; that a draft token is judged after accepted ones;
        that a block begins which was drafted ahead: float64 [R, N] each.
    """
    rows, positions = stops_text.shape
    drafts = ~stops_text.T  # [N, R]
    if not ahead:
        drafts[-1] = False  # the last token of a text comes from the target
    weights = drafts * keeps.T
    # state[j]: probability that j tokens of the current block are accepted so far, [k + 1, R].
    state = np.zeros((k + 1, rows))
    state[0] = 1.0
    following = np.empty_like(state)
    starts = np.empty((positions, rows))
    reached = np.empty((positions, rows))
    kept = np.zeros((positions + 1, rows))
    for position in range(positions):
        starts[position] = state[0]
        np.subtract(1.0, state[k], out=reached[position])
        np.multiply(state[:k], weights[position], out=following[1:])
        if ahead:
            reached[position] += state[k]
            if k > 1:
                np.multiply(state[k], weights[position], out=kept[position + 1])
                following[1] += kept[position + 1]
        np.subtract(1.0, following[1:].sum(0), out=following[0])
        state, following = following, state
    return starts.T.copy(), (reached * drafts).T, kept[:positions].T.copy()


def block_lengths(stops: NDArray[np.bool_], k: int, *, spare: int = 1) -> tuple[Ints, Ints]:
    """Return tokens and draft steps of each block, int64 [R, N] each.

    A block near the end of the text is cut, so that it and the target's token end there.

    Args:
        stops: True where the draft stops before a token, bool [R, N, ≥ k].
        k: Greatest number of draft tokens in a block.
        spare: Number of tokens at the end of the text that come from the target.
    """
    stops = stops[..., :k]
    positions = stops.shape[-2]
    room = np.minimum(k, positions - spare - np.arange(positions))  # [N]
    first = np.where(stops.any(-1), stops.argmax(-1), k)
    return np.minimum(first, room), np.minimum(first + 1, room)


def _pipelined(trace: Trace, stops: NDArray[np.bool_], keeps: Floats, settings: Settings) -> Blocks:
    """Return the blocks of the pipelined rule: first fresh ones, then those drafted ahead."""
    k = settings.k
    starts, reached, kept = chain(stops[..., 0], keeps, k, ahead=True)
    lengths, looks = block_lengths(stops, k)
    rest, look = block_lengths(stops, max(k - 1, 1))
    # A block drafted ahead has no steps of its own, but for the look that finds it empty.
    both = np.stack([lengths, rest])  # [2, R, N]
    before = np.stack([looks, np.where(rest == 0, look, 0)])
    full = np.stack([lengths == k, rest == k - 1]) & (both > 0)
    # Drafting ahead continues at the position after the block.
    after = np.minimum(np.arange(trace.positions) + both, trace.positions - 1)
    row = np.arange(trace.rows)[:, None]
    _, further = block_lengths(stops, k, spare=0)
    ahead = np.where(full, further[row, after], 0)
    weights = np.stack([starts, kept])
    return Blocks(
        starts=weights,
        lengths=both,
        looks=before,
        ahead=ahead,
        drafted=float((weights * (both + (ahead > 0))).sum()),
        accepted=float((reached * keeps).sum()),
        reached=float(reached.sum()),
        agreed=float((reached * trace.overlap).sum()),
    )


# ── lossy rule ────────────────────────────────────────────────────────────────────────────────────


def _lossy(trace: Trace, settings: Settings) -> Blocks:
    """Return the expected blocks of the lossy rule: fall back, then roll back.

    Each second block is a text of its own in the result: the same block again and again.
    """
    k = settings.k
    drafted, kept = _ended(trace.block_top[:, :: trace.stride], trace.block_nats, settings)
    ends = kept[..., None, None]  # [R, S, 1, 1]
    second_top = np.take_along_axis(trace.second_top, ends, 2)[:, :, 0]
    second_nats = np.take_along_axis(trace.second_nats, ends, 2)[:, :, 0]
    lengths, accepted = (part.ravel() for part in _ended(second_top, second_nats, settings))  # [M]
    starts = _renewals(np.bincount(accepted + 1, minlength=k + 2) / accepted.size, trace.positions)
    room = trace.positions - 1 - np.arange(trace.positions)  # [N]
    given = np.minimum(lengths[:, None], room)
    looks = np.minimum(np.minimum(lengths + 1, k)[:, None], room)
    if settings.fallback_threshold > 1:  # the draft is never called
        looks = np.zeros_like(looks)
    entered = np.minimum(accepted[:, None], room)
    judged = np.minimum(entered + 1, given)
    texts = np.broadcast_to(starts, given.shape)
    blocks_at = float(starts.sum()) * accepted.size
    steps = np.arange(k)
    reached = steps < np.minimum(kept + 1, drafted)[..., None]  # [R, S, K]
    distances = interpolated(trace.block_distance[:, :, :k], settings.rollback_threshold)
    return Blocks(
        starts=texts,
        lengths=given,
        looks=looks,
        accepted=float((texts * entered).sum()),
        reached=float((texts * judged).sum()),
        agreed=float((texts * entered).sum()),
        distance=float((distances * reached).sum() / kept.size) * blocks_at,
    )


def _ended(top: Floats, nats: Floats, settings: Settings) -> tuple[Ints, Ints]:
    """Return drafted and kept tokens of blocks [..., D] under the lossy rule, int64 [...] each."""
    k = settings.k
    stops = stops_below(top, settings)
    refused = nats[..., :k] > np.float32(settings.rollback_threshold)
    drafted = np.where(stops.any(-1), stops.argmax(-1), k)
    kept = np.where(refused.any(-1), refused.argmax(-1), k)
    return drafted, np.minimum(kept, drafted)


def _renewals(chances: Floats, positions: int) -> Floats:
    """Return P(a block begins at t), float64 [N], if blocks have these chances of a length [L]."""
    longest = len(chances) - 1
    starts = np.zeros(longest + positions)
    starts[longest] = 1.0
    backwards = chances[:0:-1]  # lengths from the longest to 1
    for position in range(1, positions):
        starts[longest + position] = starts[position : position + longest] @ backwards
    return starts[longest:]


def interpolated(recorded: Floats, threshold: float) -> Floats:
    """Return what is recorded at each of `ROLLBACKS` [..., G] at a threshold between, [...]."""
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
