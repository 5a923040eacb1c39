"""Measurement of a model pair for some seconds: its costs on this machine, and a short trace.

trace, costs = measure(pair, prompts, corpus="prose", extent=TraceConfig(), seconds=60.0)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from trainenv.config.decoding import TraceConfig
from trainenv.decoding.calibration import calibrate
from trainenv.decoding.contract import Sampling
from trainenv.decoding.pairs import Pair, recorder_of
from trainenv.decoding.traces import CostModel, Trace

_TIMED = 3  # prompts that the costs are measured on
_AT_ONCE = 4  # texts recorded between two looks at the clock


def measure(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    *,
    corpus: str,
    extent: TraceConfig,
    seconds: float,
) -> tuple[Trace, CostModel]:
    """Time a pair, and record texts until a time has passed or all prompts are done.

    Args:
        pair: Model pair.
        prompts: Tokens of each prompt.
        corpus: Name of the corpus of the prompts.
        extent: Extent of the trace.
        seconds: Time after which no more texts are begun; four texts are always recorded.
    """
    started = time.perf_counter()
    sampling = Sampling(temperature=extent.temperature, top_p=extent.top_p)
    costs = calibrate(pair.models(prompts[:_TIMED], sampling), repeats=1)
    origin = pair.origin(prompts, corpus=corpus, extent=extent)
    recorder = replace(recorder_of(extent), rows_at_once=_AT_ONCE)
    parts: list[Trace] = []
    for first in range(0, len(prompts), _AT_ONCE):
        if parts and time.perf_counter() - started > seconds:
            break
        group = prompts[first : first + _AT_ONCE]
        seeded = replace(recorder, seed=extent.seed + first)
        parts.append(seeded.record(pair.target, pair.draft, group, origin=origin))
    return Trace.joined(parts), costs
