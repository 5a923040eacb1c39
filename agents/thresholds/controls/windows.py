"""Expected blocks of a stopping rule that looks at all tokens of the current block.

`trainenv.decoding.traces.replay` covers rules that look at one distribution. Here a rule may depend
on every drafted token since the block began. Two lengths describe it: that of the block which the
draft sampled at a position, for the cost, and that of a block which follows the text, for what is
accepted. Both give expected values without sampling, for the exact rule of verification.
"""

from __future__ import annotations

import numpy as np

from trainenv.decoding.traces import Blocks, Trace
from trainenv.decoding.traces.replay import coupled
from trainenv.decoding.traces.trace import Floats, Ints


def window_blocks(trace: Trace, drafted: Ints, along_text: Ints) -> Blocks:
    """Return the expected blocks of the exact rule.

    Args:
        trace: Trace of the model pair.
        drafted: Number of tokens that the draft gives to the target from a position on, [R, N].
        along_text: The same, had the draft sampled the tokens of the text, [R, N].
    """
    positions = trace.positions
    room = positions - 1 - np.arange(positions)  # the target gives the last token
    lengths = np.minimum(drafted, room)
    ends = np.minimum(along_text, room).T  # [N, R]
    keeps = coupled(trace).T
    overlap = trace.overlap.T.astype(np.float64)
    starts = np.zeros((positions + 1, trace.rows))
    starts[0] = 1.0
    accepted = 0.0
    reached = 0.0
    agreed = 0.0
    for position in range(positions):
        alive = starts[position].copy()
        for place in range(int(ends[position].max(initial=0))):
            ended = place >= ends[position]
            starts[position + place + 1] += alive * ended
            alive *= ~ended
            now = position + place
            reached += float(alive.sum())
            agreed += float((alive * overlap[now]).sum())
            starts[now + 1] += alive * (1 - keeps[now])
            alive *= keeps[now]
            accepted += float(alive.sum())
        starts[position + int(ends[position].max(initial=0)) + 1] += alive
    return Blocks(
        starts=np.ascontiguousarray(starts[:-1].T),
        lengths=lengths,
        looks=lengths,
        accepted=accepted,
        reached=reached,
        agreed=agreed,
        distance=0.0,
    )


def text_windows(values: Floats, depth: int) -> Floats:
    """Return the values of the next `depth` tokens of the text from each position, [R, N, D].

    Args:
        values: Values of the tokens of the text, [R, N].
        depth: Number of tokens, D. Beyond the end of the text the values are 0.
    """
    padded = np.pad(values.astype(np.float64), ((0, 0), (0, depth - 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, depth, axis=1)
