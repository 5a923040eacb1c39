"""Fingerprints of twelve configurations, to prove that a refactor changed no behaviour.

Record them before the change, and compare after each step of it:

    python benchmarks/fingerprints.py --out before.json
    python benchmarks/fingerprints.py --against before.json

Every configuration has a digest of its state (`run.fingerprint()`), of its telemetry and, if it is
steered, of its decision records. Wall-clock times are left out. The digests are reproducible on one
machine with one set of packages; other machines round differently. The exit code is 1 if a digest
differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainenv import Intervention, RunFolder, Telemetry, TrainingRun, train
from trainenv.composition.default_loop import branching
from trainenv.loop import resume
from trainenv.rollouts.executor import Rollouts
from trainenv.rollouts.folded import Folded

SMALL: dict[str, Any] = {
    "steps": 60,
    "batch_size": 4,
    "model.width": 32,
    "model.context": 32,
    "schedule.warmup": 10,
    "validation.every": 20,
    "validation.sequences": 8,
    "checkpoints.every": 20,
}
STRESSED: dict[str, Any] = {
    "stressors.rare_tokens": 0.1,
    "stressors.long_sequence": 0.1,
    "stressors.artefacts": 0.1,
    "stressors.block_shuffle": 0.3,
    "stressors.harsh_warmup_steps": 5,
}
STEERED: dict[str, Any] = SMALL | {
    "steps": 400,
    "optimizer.lr": 1e-2,
    "clip.policy": "none",
    "stressors.planted": [
        {"at": 170, "kind": "random_tokens", "steps": 8},
        {"at": 260, "kind": "lr_spike", "steps": 8, "size": 20},
    ],
    "branching.every": 40,
    "branching.rewind": 24,
    "branching.save_every": 8,
    "branching.horizon": 60,
    "branching.verify_steps": 6,
    "branching.refractory_steps": 16,
    "branching.max_waste": 0.4,
}
_TIMES = ("seconds", "ms_per_step", "at", "folder", "time")


def digest(value: Any) -> str:
    """Hash JSON values, ignoring times and paths."""
    return hashlib.sha256(
        json.dumps(timeless(value), sort_keys=True, default=str).encode()
    ).hexdigest()[:16]


def timeless(value: Any) -> Any:
    """Remove times and folders from JSON values.

    Empty numbers of an objective are left out too: digests from before there were any lack them.
    """
    if isinstance(value, Mapping):
        return {
            str(name): timeless(one)
            for name, one in value.items()
            if name not in _TIMES and (name, one) != ("objective", {})
        }
    if isinstance(value, list | tuple):
        return [timeless(one) for one in value]
    return value


def of_run(run: TrainingRun, telemetry: Sequence[Telemetry]) -> dict[str, Any]:
    """Digests of a run and of its telemetry."""
    return {
        "state": run.fingerprint(),
        "telemetry": digest([asdict(step) for step in telemetry]),
        "loss": telemetry[-1].loss,
    }


def trained(**overrides: Any) -> dict[str, Any]:
    """Train a run without steering, except for one change of the learning rate."""
    run = TrainingRun.from_config("tiny", SMALL | overrides)
    telemetry = run.advance(30)
    run.apply(Intervention(lr_scale=0.8, momentum_reset=True))
    return of_run(run, telemetry + run.advance(30))


def steered() -> dict[str, Any]:
    """Train a run with the whole loop; planted harm makes it roll back."""
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun.from_config("tiny", STEERED)
        telemetry: list[Telemetry] = []
        train(
            run,
            RunFolder.create(Path(folder) / "run", run.config),
            callback=branching(),
            watch=lambda run, window: telemetry.extend(window),
        )
        return of_run(run, telemetry) | records(Path(folder) / "run")


def records(folder: Path) -> dict[str, Any]:
    """Digests of the records of a steered run."""
    decisions = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("branches/*/decision.json"))
    ]
    events = [
        json.loads(line)
        for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    kinds = [event["kind"] for event in events]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return {
        "decisions": digest(decisions),
        "events": digest(events),
        "counts": counts | {"decisions": len(decisions)},
    }


def resumed() -> dict[str, Any]:
    """Stop a steered run in the middle, and resume it in a new run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run = TrainingRun.from_config("tiny", STEERED)
        train(
            run,
            RunFolder.create(path, run.config),
            callback=branching(),
            stop=lambda: run.step >= 200,
        )
        again, callback = TrainingRun.from_config("tiny", STEERED), branching()
        telemetry: list[Telemetry] = []
        reopened, _ = resume(path, again, callback)
        train(
            again, reopened, callback=callback, watch=lambda run, window: telemetry.extend(window)
        )
        return of_run(again, telemetry) | records(path)


def folded() -> dict[str, Any]:
    """Train three forks folded into one, each steered separately."""
    run = TrainingRun.from_config("tiny", SMALL)
    run.advance(20)
    together = Folded([run.fork() for _ in range(3)])
    for number, fork in enumerate(together.runs):
        fork.apply(Intervention(lr_scale=1 - 0.2 * number))
    telemetry = together.advance(20)
    return {
        "state": [fork.fingerprint() for fork in together.runs],
        "telemetry": digest([[asdict(step) for step in one] for one in telemetry]),
        "loss": together.evaluate(),
    }


def workers() -> dict[str, Any]:
    """Train branches in two processes, and adopt one of them."""
    run = TrainingRun.from_config("tiny", SMALL | {"model.width": 64})
    run.advance(20)
    rollouts = Rollouts(run, decision_steps=10, cooldown=5, workers=2)
    lower = (Intervention(lr_scale=0.8),)
    outcomes = rollouts.run(
        [(Intervention(),), lower, (Intervention(clip="zclip"),)], 20, measure="annealed"
    )
    telemetry = rollouts.adopt(lower, 20)
    return of_run(run, telemetry) | {"outcomes": digest([asdict(outcome) for outcome in outcomes])}


CONFIGURATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": trained,
    "accumulation": lambda: trained(accumulation=2),
    "bf16": lambda: trained(precision="bf16"),
    "clip none": lambda: trained(**{"clip.policy": "none"}),
    "clip zclip": lambda: trained(**{"clip.policy": "zclip", "optimizer.lr": 0.03}),
    "clip arc": lambda: trained(**{"clip.policy": "arc", "accumulation": 2}),
    "clip spam": lambda: trained(**{"clip.policy": "spam"}),
    "stressors": lambda: trained(**STRESSED),
    "steered": steered,
    "resumed": resumed,
    "folded": folded,
    "workers": workers,
}


def main() -> int:
    """Record the digests, or compare them with earlier ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file to which the digests are written")
    parser.add_argument("--against", type=Path, help="file of earlier digests to compare with")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONFIGURATIONS,
        default=list(CONFIGURATIONS),
        help="names of the configurations to run",
    )
    args = parser.parse_args()
    digests = {}
    for name in args.only:
        digests[name] = CONFIGURATIONS[name]()
        print(f"{name:14} {json.dumps(digests[name])}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    if args.against:
        before = json.loads(args.against.read_text(encoding="utf-8"))
        changed = [
            name for name in args.only if json.loads(json.dumps(digests[name])) != before.get(name)
        ]
        print(f"changed: {', '.join(changed)}" if changed else f"all {len(digests)} are as before")
        return 1 if changed else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
