"""Calibration of a cost model: the decoder runs for some seconds, and its parts are timed.

The draft is run at some fixed lengths, and the target alone. Times of single calls are medians, so
that a few slow calls do not count. From them

    target_call[n]   median time of a target call with n new tokens, interpolated between lengths
    draft_step       slope of the drafting time over the number of draft steps
    block            intercept of that line, and the time of the rule and the loop of a target call
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainenv.decoding.contract import MAX_K, Generation, Settings, TargetCall
from trainenv.decoding.real_clock import ALONE, Models
from trainenv.decoding.traces import CostModel
from trainenv.tools.checks import whole

LENGTHS = (1, 2, 4, 8, 16)
"""Draft lengths that are run."""
_ENOUGH = 8  # target calls of a length whose median counts
_LEAST = 1e-7  # seconds; shorter differences are rounding


def calibrate(
    models: Models, *, depth: int = MAX_K, max_new_tokens: int = 48, repeats: int = 2
) -> CostModel:
    """Return the cost model of a pair on this machine, for a batch of one.

    Args:
        models: Models and prompts.
        depth: Greatest draft length that is run, from 1 to 16.
        max_new_tokens: Tokens that are generated after each prompt, more than the longest draft.
        repeats: Number of rounds over all lengths, so that a slow moment does not hit one length.
    """
    whole("depth", depth, least=1)
    whole("max_new_tokens", max_new_tokens, least=depth + 2)
    whole("repeats", repeats, least=1)
    alone: list[Generation] = []
    drafted: list[Generation] = []
    for turn in range(repeats):
        alone.append(models.generate(ALONE, "exact", max_new_tokens=max_new_tokens, seed=turn))
        for k in sorted({min(length, depth) for length in LENGTHS}):
            settings = Settings(fallback_threshold=0.0, k=k)
            drafted.append(
                models.generate(settings, "exact", max_new_tokens=max_new_tokens, seed=turn)
            )
    steps = [call for run in drafted for call in _later(run)]
    single = [call for run in alone for call in _later(run)]
    draft_step, intercept = _line(
        [call.draft_calls for call in steps], [call.draft_seconds for call in steps]
    )
    block = _rest(alone, single)
    target = _target_calls([*steps, *single], depth)
    return CostModel(
        target_call=target,
        draft_step=max(draft_step, 0.0),
        block=block,
        drafting=max(intercept, 0.0),
        judging=max(_rest(drafted, steps) - block, 0.0),
        alone=_median([call.target_seconds for call in single]) + block,
        prompt=_prompt(drafted, target, draft_step, intercept),
    )


def _rest(runs: Sequence[Generation], calls: Sequence[TargetCall]) -> float:
    """Return the seconds of rule and loop in a target call."""
    loops = [run.seconds_by_part["loop"] / len(run.calls) for run in runs]
    return _median([call.rule_seconds for call in calls]) + _median(loops)


def _later(run: Generation) -> list[TargetCall]:
    """Return the calls that do not read a prompt."""
    return [call for call in run.calls if not _reads_prompt(run, call)]


def _reads_prompt(run: Generation, call: TargetCall) -> bool:
    return any(call is first for first in _firsts(run))


def _firsts(run: Generation) -> list[TargetCall]:
    """Return the first call of each prompt; each prompt was a batch of one."""
    found: list[TargetCall] = []
    place = 0
    for tokens in run.new_tokens:
        found.append(run.calls[place])
        left = len(tokens)
        while left > 0:
            left -= run.calls[place].emitted[0]
            place += 1
    return found


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _line(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept of a line through the medians at each count."""
    known = sorted(set(counts))
    values = np.array(counts)
    medians = [float(np.median(np.array(seconds)[values == count])) for count in known]
    weights = [float(np.sqrt((values == count).sum())) for count in known]
    if len(known) == 1:
        return medians[0] / max(known[0], 1), 0.0
    slope, intercept = np.polyfit(known, medians, 1, w=weights)
    return float(slope), float(intercept)


def _target_calls(calls: Sequence[TargetCall], depth: int) -> tuple[float, ...]:
    """Return the seconds of target calls with 1 to depth + 1 new tokens."""
    tokens = np.array([call.drafted[0] + 1 for call in calls])
    seconds = np.array([call.target_seconds for call in calls])
    counts = {count: int((tokens == count).sum()) for count in set(tokens.tolist())}
    enough = min(_ENOUGH, max(counts.values()))
    known = sorted(count for count, times in counts.items() if times >= enough)
    medians = [float(np.median(seconds[tokens == count])) for count in known]
    table = np.interp(np.arange(1, depth + 2), known, medians)
    return tuple(max(float(each), _LEAST) for each in table)


def _prompt(
    runs: Sequence[Generation], target: Sequence[float], draft_step: float, intercept: float
) -> float:
    """Return the seconds by which the first call of a prompt is longer than a later one."""
    extra = [
        call.target_seconds
        + call.draft_seconds
        - target[call.drafted[0]]
        - draft_step * call.draft_calls
        - intercept
        for run in runs
        for call in _firsts(run)
    ]
    return max(_median(extra), 0.0)
