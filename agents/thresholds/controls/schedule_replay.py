"""Replay of schedules, whose next block depends on what became of the earlier ones.

The future of such a rule depends on chance, so blocks are sampled: the draft's token at a position
is accepted with the probability min(1, q / p) of the text's token, by one random number a position.
The expected length of a block does not depend on what is accepted of it, hence the length is that
of the trace's own block there, and all counts are unbiased. The state of a schedule persists from
one text to the next, as transformers keeps it between calls of `generate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Protocol

import numpy as np

from trainenv.decoding.traces import Blocks, CostModel, Score, Trace, score
from trainenv.decoding.traces.replay import coupled


class ScheduleState(Protocol):
    """State of a schedule.

    Attributes:
        tokens: Most tokens of the next block.
        threshold: Probability of a drafted token below which the block ends after it; 0 for never.
    """

    tokens: int
    threshold: float

    def update(self, probabilities: list[float], accepted: int, complete: bool, /) -> None:
        """Learn from a block.

        Args:
            probabilities: Probabilities, under the draft, of the tokens that were accepted and of
                the first one that was rejected.
            accepted: Number of accepted tokens.
            complete: True if no token was rejected.
        """
        ...


def replay_schedule(
    begin: Callable[[], ScheduleState], trace: Trace, costs: CostModel, seed: int, draws: int
) -> Score:
    """Return the mean score of a schedule on a trace with the exact rule of verification.

    Args:
        begin: Function that returns the state at the start.
        trace: Trace of the model pair.
        costs: Times of the model pair.
        seed: Random seed of the acceptances.
        draws: Number of replays with other acceptances.
    """
    scores = [_replayed(begin(), trace, costs, seed * draws + draw) for draw in range(draws)]
    means = {
        part.name: sum(getattr(score, part.name) for score in scores) / draws
        for part in fields(Score)
    }
    means["tokens"] = scores[0].tokens
    means["speedup"] = scores[0].speedup * scores[0].time_per_token / means["time_per_token"]
    return Score(**means)


def _replayed(state: ScheduleState, trace: Trace, costs: CostModel, seed: int) -> Score:
    """Return the score of one replay."""
    shape = (trace.rows, trace.positions)
    keeps = np.random.default_rng(seed).random(shape) < coupled(trace)
    text = np.exp(trace.q_text.astype(np.float64))
    block = np.exp(trace.block_q.astype(np.float64))
    starts = np.zeros(shape)
    lengths = np.zeros(shape, np.int64)
    total = 0
    reached = 0
    agreed = 0.0
    for row in range(trace.rows):
        position = 0
        while position < trace.positions:
            room = min(state.tokens, trace.depth, trace.positions - 1 - position)
            starts[row, position] = 1.0
            lengths[row, position] = _own_length(block[row, position, :room], state.threshold)
            accepted = 0
            rejected = False
            while accepted < room and not rejected:
                here = position + accepted
                reached += 1
                agreed += float(trace.overlap[row, here])
                rejected = not keeps[row, here]
                if not rejected:
                    accepted += 1
                    if text[row, here] < state.threshold:
                        break
            known = text[row, position : position + accepted].tolist()
            if rejected:
                known.append(float(block[row, position + accepted, 0]))
            if room:
                state.update(known, accepted, not rejected)
            total += accepted
            position += accepted + 1
    blocks = Blocks(
        starts=starts,
        lengths=lengths,
        looks=lengths,
        accepted=float(total),
        reached=float(reached),
        agreed=agreed,
        distance=0.0,
    )
    return score(blocks, costs)


def _own_length(probabilities: np.ndarray[tuple[int], np.dtype[np.float64]], least: float) -> int:
    """Return the tokens of a block that ends after the first token below a probability."""
    below = probabilities < least
    if math.isclose(least, 0.0) or not below.any():
        return len(probabilities)
    return int(below.argmax()) + 1
