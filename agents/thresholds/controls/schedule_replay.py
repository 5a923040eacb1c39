"""Replay of schedules, whose next block depends on what became of the earlier ones.

The future of such a rule depends on chance, so blocks are sampled: the draft's token at a position
is accepted with the probability min(1, q / p) of the text's token, by one random number a position.
The expected length of a block does not depend on what is accepted of it, hence the length is that
of the trace's own block there, and all counts are unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from trainenv.agents.thresholds.contract import Floats
from trainenv.decoding.schedules import BlockState, Schedule
from trainenv.decoding.traces import Blocks, CostModel, Score, Trace, score
from trainenv.decoding.traces.replay import check_depth, coupled
from trainenv.tools.checks import whole


@dataclass(frozen=True, kw_only=True)
class ReplayedSchedule:
    """Decode with a schedule and the exact rule of verification.

    Args:
        schedule: Schedule of the draft length.
        lasting: True to keep the state from one text to the next, as transformers does between
            calls of `generate`; False to begin anew in each text, as the decoder does.
        seed: Random seed of the acceptances.
        draws: Number of replays with other acceptances, which are averaged.

    Raises:
        UserError: A number is out of range.
    """

    schedule: Schedule
    lasting: bool = False
    seed: int = 0
    draws: int = 8

    def __post_init__(self) -> None:
        whole("seed", self.seed, least=0)
        whole("draws", self.draws, least=1)

    def replay(self, trace: Trace, costs: CostModel, /) -> Score:
        """Return the mean score of the replays on a trace."""
        check_depth(trace, self.schedule.begin().tokens)
        scores = [
            self._replayed(trace, costs, self.seed * self.draws + draw)
            for draw in range(self.draws)
        ]
        means = {
            part.name: sum(getattr(score, part.name) for score in scores) / self.draws
            for part in fields(Score)
        }
        means["tokens"] = scores[0].tokens
        means["speedup"] = scores[0].speedup * scores[0].time_per_token / means["time_per_token"]
        return Score(**means)

    def _replayed(self, trace: Trace, costs: CostModel, seed: int) -> Score:
        """Return the score of one replay."""
        drafts = _Drafts.of(trace, seed)
        state = self.schedule.begin()
        for row in range(trace.rows):
            if row and not self.lasting:
                state = self.schedule.begin()
            drafts.decode(row, state)
        return score(drafts.blocks(), costs)


@dataclass
class _Drafts:
    """Blocks of a replay so far.

    Attributes:
        trace: Trace of the model pair.
        keeps: True where the draft's token is accepted, bool [R, N].
        text: Probability of the text's token under the draft, [R, N].
        block: Probability of each token of the draft's own blocks, [R, N, D].
        top: Largest probability of the draft before each token of its blocks, [R, N, D].
        starts: 1 where a block begins, [R, N].
        lengths: Number of its tokens, [R, N].
        accepted: Number of accepted tokens.
        reached: Number of tokens whose predecessors were accepted.
        agreed: Expected number of them that are accepted.
    """

    trace: Trace
    keeps: np.ndarray
    text: Floats
    block: Floats
    top: Floats
    starts: Floats
    lengths: np.ndarray
    accepted: int = 0
    reached: int = 0
    agreed: float = 0.0

    @classmethod
    def of(cls, trace: Trace, seed: int) -> _Drafts:
        """Return no blocks, and the acceptances of a seed."""
        shape = (trace.rows, trace.positions)
        top = trace.block_top.astype(np.float64)
        text = np.exp(trace.q_text.astype(np.float64))
        block = np.exp(trace.block_q.astype(np.float64))
        if trace.origin.temperature == 0:  # a token that is not drawn has its softmax probability
            text = top[..., 0]
            block = top
        return cls(
            trace=trace,
            keeps=np.random.default_rng(seed).random(shape) < coupled(trace),
            text=text,
            block=block,
            top=top,
            starts=np.zeros(shape),
            lengths=np.zeros(shape, np.int64),
        )

    def decode(self, row: int, state: BlockState) -> None:
        """Decode a text."""
        trace = self.trace
        position = 0
        while position < trace.positions:
            room = min(state.tokens, trace.depth, trace.positions - 1 - position)
            self.starts[row, position] = 1.0
            self.lengths[row, position] = _length(
                self.block[row, position, :room].tolist(),
                self.top[row, position, :room].tolist(),
                state,
            )
            accepted, rejected = self._verified(row, position, room, state)
            known = self.text[row, position : position + accepted].tolist()
            if rejected:
                known.append(float(self.block[row, position + accepted, 0]))
            if room:
                state.update(known, accepted, not rejected)
            self.accepted += accepted
            position += accepted + 1

    def _verified(self, row: int, position: int, room: int, state: BlockState) -> tuple[int, bool]:
        """Return the accepted tokens of a block that follows the text, and if one was rejected."""
        own: list[float] = []
        top: list[float] = []
        for accepted in range(room):
            here = position + accepted
            self.reached += 1
            self.agreed += float(self.trace.overlap[row, here])
            if not self.keeps[row, here]:
                return accepted, True
            own.append(float(self.text[row, here]))
            top.append(float(self.top[row, here, 0]))
            if state.ends(own, top):
                return accepted + 1, False
        return room, False

    def blocks(self) -> Blocks:
        """Return the blocks as the clock wants them."""
        return Blocks(
            starts=self.starts,
            lengths=self.lengths,
            looks=self.lengths,
            accepted=float(self.accepted),
            reached=float(self.reached),
            agreed=self.agreed,
        )


def _length(own: Sequence[float], top: Sequence[float], state: BlockState) -> int:
    """Return the tokens of a block of the draft."""
    for count in range(1, len(own) + 1):
        if state.ends(own[:count], top[:count]):
            return count
    return len(own)
