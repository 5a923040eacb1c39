"""Ablation of the branching loop: each part replaced by another one, at the same budget.

    python benchmarks/loop.py --out runs/loop --json

| variant | difference from the default loop |
|---|---|
| `rule=risk`, `rule=annealed` | another accept rule |
| `unverified` | accepts the best draft after one step, without comparing losses |
| `planner=mcts` | another planner |
| `all-parts` | drafts may change every part of an intervention |
| `alarms-only`, `corrections-only` | fewer triggers |
| `uninsured` | no default clipping in runs without clipping |
| `oracle-draft` | drafts by the final loss of each learning-rate change (16 uncharged branches) |

Printed are paired differences of ln final validation loss to no intervention, with 95 % bootstrap
intervals over scenarios and seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainenv.agents.branching import Branching
from trainenv.agents.branching.decision import Decision, Proposal
from trainenv.agents.branching.problems import ramps
from trainenv.agents.branching.rewind_points import RewindPoint
from trainenv.compare import compare, load_suite
from trainenv.compare.cells import measure_cell
from trainenv.composition.default_loop import branching
from trainenv.composition.methods import METHODS
from trainenv.config.schema import RunConfig
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder
from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.run import TrainingRun
from trainenv.types import Branch, Candidate, Measure, Plan, PlanningProblem, Run

SCENARIOS = ("calm", "lr-10x", "lr-third", "unclipped-bursts", "corrupt-and-spikes", "lost-moments")


class Oracle(Branching):
    """Branching loop with a planner that trains each learning-rate change to the end of the run."""

    def plan(self, run: Run, point: RewindPoint, decision: Decision) -> Proposal:
        """Return the proposal of a planner that knows the run."""
        self.planner = Hindsight(run)
        return super().plan(run, point, decision)


@dataclass(frozen=True)
class Hindsight:
    """Planner that ranks learning-rate changes by the final loss; its runs are not charged."""

    run: Run

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Return each change of the learning rate, the best first."""
        run = self.run
        ledger = run.ledger.as_dict()
        listed = [NOTHING, *ramps(problem.codec, problem.masks)]
        rollouts = Rollouts(run, decision_steps=problem.history.decision_steps)
        outcomes = rollouts.run(listed, run.horizon.end - run.step, measure="horizon")
        run.ledger.load(ledger)
        losses = [run.uniform_loss if o.error or o.diverged else o.validation[-1] for o in outcomes]
        ranked = sorted(
            (
                Candidate(interventions=one, score=loss / losses[0] - 1)
                for one, loss in zip(listed, losses)
            ),
            key=lambda candidate: candidate.score,
        )
        return Plan(planner="oracle", candidates=tuple(ranked))


class Anything:
    """Rule that accepts every branch that has not diverged, by the rank of the draft."""

    measure: Measure = "horizon"

    def objection(self, branch: Branch, control: Branch, /) -> str:
        return ""

    def rank(self, branch: Branch, /) -> float:
        return branch.score


def play(
    config: RunConfig,
    path: Path,
    watch: Any,
    stop: Any,
    *,
    overrides: Mapping[str, Any],
    variant: str = "",
) -> dict[str, Any]:
    """Train a run with one part of the loop replaced."""
    config = RunConfig.load(config, dict(overrides))
    callback = branching(planner="mcts") if variant == "mcts" else branching()
    if variant == "mcts":
        callback.planner = replace(callback.planner, rank_by="forecast")  # type: ignore[type-var]
    if variant == "oracle":
        callback = Oracle(
            planner=callback.planner, model=callback.model, planning=callback.planning
        )
    if variant == "unverified":
        from trainenv.wrappers import Verification

        callback.verification = Verification(
            top_k=1, verify_steps=1, rule=Anything(), stopping=None
        )
    run = TrainingRun.from_config(config)
    return train(run, RunFolder.create(path, config), callback=callback, watch=watch, stop=stop)


PARTS = ["lr_scale", "weight_decay_scale", "clip", "momentum_reset", "data_reorder", "skip_batch"]
VARIANTS: dict[str, Any] = {
    "nothing": METHODS["nothing"],
    "branching": METHODS["branching"],
    "rule=risk": partial(play, overrides={"branching.rule": "risk"}),
    "rule=annealed": partial(play, overrides={"branching.rule": "annealed"}),
    "unverified": partial(play, overrides={}, variant="unverified"),
    "planner=mcts": partial(play, overrides={}, variant="mcts"),
    "all-parts": partial(play, overrides={"branching.parts": PARTS}),
    "alarms-only": partial(play, overrides={"branching.triggers": ["fired", "regression"]}),
    "corrections-only": partial(play, overrides={"branching.triggers": ["checkpoint"]}),
    "uninsured": partial(play, overrides={"branching.default_clip": False}),
    "oracle-draft": partial(play, overrides={}, variant="oracle"),
}


def measure(
    out: Path, seeds: int, workers: int, names: Sequence[str], scenarios: Sequence[str]
) -> dict[str, Any]:
    suite = replace(
        load_suite("quick").select(methods=names, scenarios=scenarios, seeds=seeds),
        hindsight=(),
        open_loop=(),
    )

    def tell(progress: Any) -> None:
        print(
            f"{progress.done} of {progress.total}, {progress.seconds_left / 60:.0f} minutes left",
            file=sys.stderr,
        )

    found = compare(out, suite, VARIANTS, measure_cell, workers=workers, progress=tell)
    rows = [row for row in found["methods"] if row["group"] in ("all", "calm", "stressed")]
    return {"scenarios": list(scenarios), "seeds": seeds, "rows": rows, "failed": found["failed"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the results; the same command resumes from there",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant and scenario")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated variants")
    parser.add_argument(
        "--scenarios", default=",".join(SCENARIOS), help="comma-separated scenarios"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    found = measure(
        args.out, args.seeds, args.workers, args.variants.split(","), args.scenarios.split(",")
    )
    print(json.dumps(found) if args.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
