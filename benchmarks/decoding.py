"""Methods that choose the thresholds of speculative decoding, on held-out pairs and corpora.

    trainenv decode train-pairs own --out runs/pairs           # once, minutes on a core
    trainenv decode trace own --out runs/pairs                 # once, minutes on a core
    python benchmarks/decoding.py runs/pairs [--json]          # resumable, minutes on a core
    python benchmarks/decoding.py --synthetic --seeds 1        # without models, a minute

For every method: speed-up over the target alone, acceptance, distance to the target, regret to the
oracle and evaluations spent, with 95 % intervals over traces; the clocks and seeds of one trace
are not independent, and neither are traces with one target, which the intervals neglect. Methods
with "other pairs" or "other corpora" never saw the pair or the corpus. The dynamic schedules of
transformers (`heuristic`, `confidence`) are in the same run.

A clock is a cost model: `measured` on this machine, or a number, the share of a target call that a
draft step costs. Measured clocks of small models on a CPU are mostly overhead; a share of 0.05 to
0.2 is that of served models, ten times apart, on an accelerator.

The goals are printed with the figures that decide them. With `--json`, the last line of stdout is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainenv.agents.thresholds.evaluation import compared, evaluate
from trainenv.agents.thresholds.plan import GENERAL, Plan
from trainenv.agents.thresholds.sources import Source, read_sources, with_clocks
from trainenv.agents.thresholds.strategies import STRATEGIES
from trainenv.decoding.traces import CostModel, SyntheticPair, synthetic_trace
from trainenv.report import write_report
from trainenv.report.decoding import DECODING
from trainenv.tools.atomic_files import write_json
from trainenv.tools.json_lines import plain

PARTS = ("other pairs", "other corpora")
SCHEDULES = ("heuristic", "confidence")
WITHIN = 0.05


def main() -> None:
    """Print the tables as text, then as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder with traces and costs")
    parser.add_argument("--synthetic", action="store_true", help="take synthetic pairs")
    parser.add_argument("--clocks", default="measured,0.05,0.15", help="clocks of each task")
    parser.add_argument("--methods", default=",".join(STRATEGIES))
    parser.add_argument("--general", default=",".join(GENERAL))
    parser.add_argument("--rule", default="exact")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--moves", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=Path("runs/decoding-benchmark"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.synthetic:
        sources = synthetic_sources()
    elif args.folder is not None:
        sources = with_clocks(read_sources(args.folder), args.clocks.split(","))
    else:
        parser.error("give a folder with traces, or --synthetic")
    plan = Plan(
        methods=tuple(name for name in args.methods.split(",") if name),
        general=tuple(name for name in args.general.split(",") if name),
        rule=args.rule,
        budget=args.budget,
        seeds=args.seeds,
        moves=args.moves,
    )
    started = time.perf_counter()

    def show(done: int, total: int, name: str) -> None:
        if done % 25 == 0:
            seconds = time.perf_counter() - started
            print(f"{seconds:6.0f} s  {done} of {total}  {name}", file=sys.stderr, flush=True)

    found = evaluate(sources, plan, args.out, progress=show)
    write_json(args.out / DECODING, found)
    report = write_report(args.out)
    for one in sorted(found["methods"], key=lambda one: one["regret"]["value"]):
        print(
            f"{one['method']:28} "
            + "  ".join(f"{name} {shown(one[name])}" for name in ("regret", "speedup"))
            + f"  acceptance {one['acceptance']['value']:.3f}"
            + f"  distance {one['distance']['value']:.4f}"
            + f"  evaluations {one['evaluations']['value']:.0f}"
        )
    goals = judged(found["rows"])
    for name, goal in goals.items():
        print(f"{'met   ' if goal['met'] else 'MISSED'} {name}: {goal['figure']}")
    print(f"report: {report}")
    if args.json:
        kept = {name: found[name] for name in ("finished", "plan", "methods")}
        print(json.dumps(plain({**kept, "sources": len(sources), "goals": goals})))


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each goal with its figure and whether it is met."""
    labels = {row["label"] for row in rows}
    goals: dict[str, dict[str, Any]] = {}

    def judge(name: str, one: str, other: str, least: float) -> None:
        if one in labels and other in labels:
            figure = compared(rows, one, other)
            goals[name] = {
                "met": bool(figure.value > least),
                "clear": bool(figure.low > least),
                "figure": f"{figure.value:.3f} × ({figure.low:.3f} to {figure.high:.3f})",
                **figure.to_json(),
            }

    for part in PARTS:
        general = f"general, {part}"
        judge(f"{general} is within 5 % of the oracle", general, "oracle", 1 - WITHIN)
        for schedule in SCHEDULES:
            judge(f"{general} is ahead of transformers' {schedule}", general, schedule, 1.0)
            adaptive = f"adaptive, {part}"
            judge(f"{adaptive} is ahead of transformers' {schedule}", adaptive, schedule, 1.0)
        judge(f"{general} is ahead of fixed settings", general, f"fixed, {part}", 1.0)
        judge(f"exchanged contexts lose it, {part}", general, f"shuffled, {part}", 1.0)
        judge(f"PPO policy beats kernel regression, {part}", f"ppo policy, {part}", general, 1.0)
    judge("PPO beats the grid", "ppo", "grid", 1.0)
    judge("PPO beats CMA-ES", "ppo", "cma-es", 1.0)
    return goals


def shown(figure: dict[str, Any]) -> str:
    """Write a figure with its interval."""
    return f"{figure['value']:6.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def synthetic_sources() -> list[Source]:
    """Return four synthetic pairs on three corpora that differ in difficulty."""
    found = []
    for place, (noise, ratio) in enumerate(((0.4, 0.05), (0.7, 0.3), (1.0, 0.1), (1.4, 0.2))):
        for sharpness in (1.5, 2.5, 4.0):
            pair = SyntheticPair(noise=noise, sharpness=sharpness, seed=place)
            found.append(
                Source(
                    pair=f"synthetic {place}",
                    corpus=f"sharpness {sharpness}",
                    trace=synthetic_trace(pair, rows=16, positions=64),
                    costs=CostModel.of_ratio(ratio, per_token=0.03),
                )
            )
    return found


if __name__ == "__main__":
    main()
