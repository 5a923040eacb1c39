"""The cost model's clock against the real one, and replayed counts against the decoder's.

    python benchmarks/decoding_clock.py --folder pairs --config own --json

For each pair of a folder of pairs (see trainenv/decoding/pairs.py) it calibrates a cost model, then
decodes at settings that were not calibrated on, and compares time a token, tokens a target call and
accepted tokens with the replay of a trace that it records on the same prompts. Calibration and
decoding take turns, and each turn is compared with its own calibration: the speed of a machine
changes within minutes. Errors are medians over the turns:

    clock error   the cost model, on the very calls that the decoder made
    time error    the replay, whose counts are those of a short trace
    calls z       the counts, in standard errors

With --cpu-time both clocks count CPU seconds of this process, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainenv.config.decoding import PairsConfig, TraceConfig
from trainenv.decoding import batch, decoder
from trainenv.decoding.calibration import calibrate
from trainenv.decoding.contract import Generation, Settings
from trainenv.decoding.pairs import Pair, load_pair, prompts_of, recorder_of
from trainenv.decoding.real_clock import ALONE
from trainenv.decoding.traces import CostModel, Trace, replay

POINTS = (
    ("exact", ALONE),
    ("exact", Settings(fallback_threshold=0.0, k=3)),
    ("exact", Settings(fallback_threshold=0.0, k=6)),
    ("exact", Settings(fallback_threshold=0.3, k=16)),
    ("exact", Settings(fallback_threshold=0.6, k=8)),
    ("lossy", Settings(fallback_threshold=0.2, rollback_threshold=3.0, k=8)),
    ("lossy", Settings(fallback_threshold=0.4, rollback_threshold=5.0, k=16)),
    ("pipelined", Settings(fallback_threshold=0.2, k=5)),
)
"""Settings that are compared; the draft lengths of the calibration are 1, 2, 4, 8 and 16 at 0."""
_CALIBRATED = 4  # prompts of a calibration


def main() -> None:
    """Measure all pairs and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the models")
    parser.add_argument("--config", default="own", help="configuration of pairs (default: own)")
    parser.add_argument("--pairs", nargs="*", help="names of the pairs (default: all)")
    parser.add_argument("--rows", type=int, default=16, help="prompts (default: 16)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a prompt (default: 64)")
    parser.add_argument("--turns", type=int, default=5, help="calibrations (default: 5)")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cpu_time:
        batch.perf_counter = time.process_time  # type: ignore[attr-defined]
        decoder.perf_counter = time.process_time  # type: ignore[attr-defined]
    config = PairsConfig.load(options.config)
    rows = []
    for pair_config in config.pairs:
        if options.pairs and pair_config.name not in options.pairs:
            continue
        pair = load_pair(pair_config, config, options.folder)
        for row in measured(pair, config, options.rows, options.tokens, options.turns):
            rows.append(row)
            if not options.json:
                print(line(row), flush=True)
    result = {
        "benchmark": "decoding_clock",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cpu_time": options.cpu_time,
        "rows": rows,
        **{
            name: summary([abs(row[name]) for row in rows])  # type: ignore[arg-type]
            for name in ("clock_error", "time_error")
        },
    }
    if options.json:
        print(json.dumps(result))
    else:
        print({name: value for name, value in result.items() if name != "rows"})


def summary(errors: list[float]) -> dict[str, float]:
    """Return mean and largest error, and the share of errors within 10 %."""
    return {
        "mean": float(np.mean(errors)),
        "largest": float(np.max(errors)),
        "within_10_percent": float(np.mean(np.array(errors) <= 0.1)),
    }


def measured(
    pair: Pair, config: PairsConfig, rows: int, tokens: int, turns: int
) -> list[dict[str, object]]:
    """Return one row for each of `POINTS`, on prompts of the first corpus."""
    corpus = config.corpora[0]
    prompts = prompts_of(corpus, pair.tokenizer, rows=rows, length=config.trace.prompt, seed=1)
    trace = recorded(pair, prompts, corpus.name, tokens)
    models = pair.models(prompts)
    costs = []
    runs: list[list[Generation]] = [[] for _ in POINTS]
    for turn in range(turns):
        costs.append(
            calibrate(pair.models(prompts[:_CALIBRATED]), max_new_tokens=tokens, repeats=1)
        )
        for place, (rule, settings) in enumerate(POINTS):
            runs[place].append(
                models.generate(settings, rule, max_new_tokens=tokens, seed=100 * turn)
            )
    return [
        {"pair": pair.name, "cost_ratio": float(np.median([one.ratio for one in costs]))}
        | compared(trace, costs, runs[place], rule, settings, tokens)
        for place, (rule, settings) in enumerate(POINTS)
    ]


def recorded(pair: Pair, prompts: list[list[int]], corpus: str, tokens: int) -> Trace:
    """Record the trace that is replayed."""
    extent = TraceConfig(positions=tokens)
    origin = pair.origin(prompts, corpus=corpus, extent=extent)
    return recorder_of(extent).record(pair.target, pair.draft, prompts, origin=origin)


def compared(
    trace: Trace,
    costs: list[CostModel],
    runs: list[Generation],
    rule: str,
    settings: Settings,
    tokens: int,
) -> dict[str, object]:
    """Return real and modelled time a token, and the counts of both.

    Args:
        trace: Trace that is replayed.
        costs: Cost model of each turn.
        runs: What the decoder made in each turn.
        rule: Rule of verification.
        settings: Settings of the decoder.
        tokens: Tokens a prompt.
    """
    real = np.array([seconds_of(run, rule) / run.tokens for run in runs])
    modelled = np.array([modelled_seconds(run, one) / run.tokens for run, one in zip(runs, costs)])
    started = time.perf_counter()
    scores = [replay(trace, settings, one, rule) for one in costs]
    replay_seconds = (time.perf_counter() - started) / len(costs)
    replayed = np.array([one.time_per_token for one in scores])
    found = scores[0]
    calls = [run.target_calls / len(run.prompts) for run in runs]
    drafted = sum(run.drafted for run in runs)
    per_text = np.concatenate([calls_of_each(run.calls, tokens) for run in runs])
    return {
        "rule": rule,
        "fallback_threshold": settings.fallback_threshold,
        "rollback_threshold": settings.rollback_threshold,
        "k": settings.k,
        "real_ms_per_token": 1e3 * float(np.median(real)),
        "model_ms_per_token": 1e3 * float(np.median(modelled)),
        "replay_ms_per_token": 1e3 * float(np.median(replayed)),
        "clock_error": float(np.median(modelled / real - 1)),
        "time_error": float(np.median(replayed / real - 1)),
        "spread_over_turns": float((real.max() - real.min()) / np.median(real)),
        "real_tokens_per_call": tokens / float(np.mean(calls)),
        "model_tokens_per_call": found.tokens_per_call,
        # In standard errors of the decoder's mean; the trace has an error too.
        "calls_z": (tokens / found.tokens_per_call - float(per_text.mean()))
        / max(float(per_text.std()) * (1 / len(per_text) + 1 / trace.rows) ** 0.5, 1e-9),
        "real_accepted_share": sum(run.accepted for run in runs) / max(drafted, 1),
        "model_accepted_share": 1 - found.wasted,
        "replay_ms": 1e3 * replay_seconds,
    }


def seconds_of(run: Generation, rule: str) -> float:
    """Return the time of a generation; the pipelined rule has a clock with two devices."""
    if rule == "pipelined":
        return run.seconds_on_two_devices
    return run.seconds


def modelled_seconds(run: Generation, costs: CostModel) -> float:
    """Return what the cost model says for the calls that the decoder made."""
    verifying = costs.calls(np.array([call.drafted[0] + 1 for call in run.calls]))
    steps = np.array([call.draft_calls for call in run.calls])
    ahead = np.array([call.ahead_calls for call in run.calls])
    judged = np.array([call.drafted[0] > 0 for call in run.calls])
    verifying = np.maximum(verifying, ahead * costs.draft_step)
    drafting = steps * costs.draft_step + (steps > 0) * costs.drafting
    each = verifying + drafting + judged * costs.judging + costs.block
    return float(each.sum()) + len(run.prompts) * costs.prompt


def calls_of_each(calls: object, tokens: int) -> np.ndarray:
    """Return the number of target calls of each text; the texts came one after the other."""
    counts = [0]
    left = tokens
    for call in calls:  # type: ignore[attr-defined]
        counts[-1] += 1
        left -= call.emitted[0]
        if left <= 0:
            counts.append(0)
            left = tokens
    return np.array(counts[:-1])


def line(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    return (
        "{pair:14} {rule:9} f={fallback_threshold:<4} r={rollback_threshold:<4} k={k:<3}"
        " real {real_ms_per_token:.3f} ms (± {spread_over_turns:.0%})  model {clock_error:+.1%}"
        "  replay {time_error:+.1%}"
        "  tokens a call {real_tokens_per_call:.3f} {model_tokens_per_call:.3f} ({calls_z:+.1f} se)"
        "  accepted {real_accepted_share:.3f} {model_accepted_share:.3f}  {replay_ms:.1f} ms"
    ).format(**row)


if __name__ == "__main__":
    main()
