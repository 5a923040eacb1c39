"""Detection of harm: recall, false alarms and lead time of the index and of simpler detectors.

The simpler detectors are each axis of the index alone and a z-score of the loss. The runs train a
tiny model; half of them have planted events, the others are clean. An event is *harmful* if the
clean validation loss, evaluated every 4 steps, stays at least `--harm` nats above its level before
the event for 3 evaluations in a row within 60 steps; other events do not count. An alarm within 60
steps after the start of an event belongs to it; alarms in clean runs are false. *Lead* is the
number of steps from the alarm to the step at which the rise of the validation loss reached half its
height. *Delay* is the number of steps from the start of the event to the alarm.

The plain z-score compares the training loss with its moving mean and deviation over the index's
window. It is used twice: with the index's rule (3 in a row over 2.5, or one over 3.2), and with the
threshold raised until it gives as few false alarms on the clean runs.

Runs are trained once and kept in the folder `--cache`, one file each. The index is then computed
again from their recorded measurements, so that a change of the index is evaluated in seconds and an
interrupted generation can resume. `--no-probe` leaves out the measurements of the probe, as in a
run without one.

    python benchmarks/detection.py --json
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainenv import TrainingRun, UncertaintyIndex
from trainenv.types import Telemetry

STEPS, HORIZON, WATCH, LOOKS = 1200, 60, 4, 3
KINDS = ("lr_spike", "random_tokens", "rare_tokens", "weight_kick", "lost_moments")
LEARNING_RATES = (1e-3, 3e-3, 6e-3)
PROBE = ("probe_loss", "attention_entropy", "activation_entropy", "embedding_rms", "shortcut_ratio")


@dataclass(frozen=True)
class Planted:
    at: int
    kind: str
    steps: int
    size: float
    rise: float = 0.0
    half_at: int = 0


@dataclass(frozen=True)
class Trial:
    seed: int
    telemetry: list[Telemetry]
    events: tuple[Planted, ...]


def plan(seed: int) -> list[Planted]:
    """Draw four events of different kinds, of random strength, at least 150 steps apart."""
    rng = np.random.default_rng(seed)
    at, events = 330 + int(rng.integers(0, 60)), []
    for kind in rng.permutation(KINDS)[:4]:
        steps, size = int(rng.integers(3, 11)), float(np.exp(rng.uniform(np.log(4), np.log(20))))
        events.append(Planted(at, str(kind), steps, size))
        at += 190 + int(rng.integers(0, 30))
    return events


def trial(job: tuple[int, bool]) -> Trial:
    """Train one run; if it has events, evaluate the validation loss around each."""
    seed, eventful = job
    torch.set_num_threads(1)
    events = plan(seed) if eventful else []
    planted = [
        {
            "at": e.at,
            "kind": e.kind,
            "steps": e.steps,
            "size": e.size if e.kind == "lr_spike" else 1.0,
        }
        for e in events
        if e.kind not in ("weight_kick", "lost_moments")
    ]
    run = TrainingRun.from_config(
        "tiny",
        {
            "seed": seed,
            "steps": STEPS,
            "optimizer.lr": LEARNING_RATES[seed % 3],
            "clip.policy": ("none", "zclip")[seed % 2],
            "stressors.planted": planted,
            "validation.sequences": 64,
        },
    )
    telemetry: list[Telemetry] = []
    seen = []
    for event in events:
        telemetry += run.advance(event.at - run.step)
        before = run.evaluate()
        strike(run, event)
        losses = []
        for _ in range(HORIZON // WATCH):
            telemetry += run.advance(WATCH)
            losses.append(run.evaluate() - before)
        losses = [loss if math.isfinite(loss) else 10.0 for loss in losses]
        rise = max(min(losses[k : k + LOOKS]) for k in range(len(losses) - LOOKS + 1))
        half = next((k for k, loss in enumerate(losses) if not loss < rise / 2), 0)
        seen.append(
            Planted(
                event.at, event.kind, event.steps, event.size, rise, event.at + WATCH * (half + 1)
            )
        )
    telemetry += run.advance(STEPS - run.step)
    return Trial(seed, telemetry, tuple(seen))


def kept(job: tuple[int, bool], cache: Path | None) -> Trial:
    """Read the trial of `job` from the cache, or train it and write it there."""
    if cache is None:
        return trial(job)
    path = cache / f"{job[0]}-{'events' if job[1] else 'clean'}.json"
    if not path.exists():
        made = trial(job)
        names = [field.name for field in fields(Telemetry) if field.name != "reading"]
        known = {
            "telemetry": [{name: getattr(t, name) for name in names} for t in made.telemetry],
            "events": [asdict(event) for event in made.events],
        }
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(known))
        unfinished.replace(path)
    known = json.loads(path.read_text())
    telemetry = [
        Telemetry(**{**row, "stressors": tuple(row["stressors"])}) for row in known["telemetry"]
    ]
    return Trial(job[0], telemetry, tuple(Planted(**event) for event in known["events"]))


def replayed(one: Trial, *, probe: bool) -> Trial:
    """Compute the readings of the present index from the recorded telemetry of a trial."""
    index = UncertaintyIndex(steps=STEPS)
    telemetry = []
    for t in one.telemetry:
        unseen: dict[str, Any] = {} if probe else dict.fromkeys(PROBE, math.nan)
        seen = replace(t, **unseen)
        telemetry.append(replace(seen, reading=index.update(seen)))
    return replace(one, telemetry=telemetry)


def strike(run: TrainingRun, event: Planted) -> None:
    """Damage the weights or the optimizer.

    The other kinds of event are planted in the data and the schedule.
    """
    if event.kind == "weight_kick":
        generator = torch.Generator().manual_seed(event.at)
        with torch.no_grad():
            for parameter in run.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std() * 0.02 * event.size)
    elif event.kind == "lost_moments":
        for state in run.optimizer.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()


Detector = Callable[[Sequence[Telemetry]], list[int]]


def alarms_of_index(telemetry: Sequence[Telemetry]) -> list[int]:
    return [t.step for t in telemetry if t.reading.fired]


def alarms_over(
    values: Sequence[float], threshold: float, single: float, consecutive: int = 3, silent: int = 50
) -> list[int]:
    """Apply the index's rule, lenient at the start, to a series of z-scores."""
    alarms, running, quiet = [], 0, 0
    for step, value in enumerate(values, start=1):
        leniency = max(1.0, 2.0 - step / (0.2 * STEPS))
        running = running + 1 if value >= threshold * leniency else 0
        if (running >= consecutive or value >= single * leniency) and step > quiet:
            alarms.append(step)
            quiet, running = step + silent, 0
    return alarms


def loss_z(telemetry: Sequence[Telemetry], window: int = 512, least: int = 64) -> list[float]:
    """Plain z-score of the training loss against the preceding window."""
    losses, scores = [t.loss for t in telemetry], []
    for place, loss in enumerate(losses):
        past = np.array(losses[max(0, place - window) : place])
        past = past[np.isfinite(past)]
        if not math.isfinite(loss):
            scores.append(100.0)
        elif len(past) < least:
            scores.append(0.0)
        else:
            recent = past[-64:]  # the loss falls: the mean must be a recent one
            scores.append(float((loss - recent.mean()) / (past - _trend(past)).std()))
    return scores


def _trend(values: np.ndarray) -> np.ndarray:
    x = np.arange(len(values))
    return np.polyval(np.polyfit(x, values, 2), x)


def judge(trials: Sequence[Trial], detector: Detector, harm: float) -> dict[str, Any]:
    """Evaluate a detector.

    Returned are recall with its 95 % interval (Wilson), false alarms per 10 000 clean steps, and
    the median lead and delay.
    """
    hits, leads, delays, missed = 0, [], [], []
    false, clean_steps, harmful, spare = 0, 0, 0, 0
    for one in trials:
        alarms = detector(one.telemetry)
        if not one.events:
            false += len(alarms)
            clean_steps += len(one.telemetry)
            continue
        used = set()
        for event in one.events:
            own = [a for a in alarms if event.at < a <= event.at + HORIZON]
            used |= set(own)
            if event.rise < harm:
                continue
            harmful += 1
            if own:
                hits += 1
                delays.append(own[0] - event.at)
                leads.append(event.half_at - own[0])
            else:
                missed.append(f"{event.kind} +{event.rise:.2f}")
        spare += len([a for a in alarms if a not in used])
    recall = hits / max(1, harmful)
    low, high = wilson(hits, harmful)
    return {
        "recall": round(recall, 4),
        "recall_95": [round(low, 3), round(high, 3)],
        "harmful": harmful,
        "false_per_10k": round(1e4 * false / max(1, clean_steps), 3),
        "alarms_beside_events": spare,
        "lead_median": float(np.median(leads)) if leads else None,
        "delay_median": float(np.median(delays)) if delays else None,
        "delay_mean": round(float(np.mean(delays)), 2) if delays else None,
        "missed": missed,
    }


def wilson(hits: int, of: int) -> tuple[float, float]:
    if not of:
        return 0.0, 1.0
    p, z2 = hits / of, 1.96**2
    middle, half = p + z2 / (2 * of), 1.96 * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    return (middle - half) / (1 + z2 / of), (middle + half) / (1 + z2 / of)


def results(trials: Sequence[Trial], harm: float) -> dict[str, Any]:
    """Evaluate every detector on the same trials."""
    scores = {one.seed + (0 if one.events else 10**6): loss_z(one.telemetry) for one in trials}

    def by_loss(threshold: float, single: float) -> Detector:
        return lambda telemetry: alarms_over(scores[keys[id(telemetry)]], threshold, single)

    keys = {id(one.telemetry): one.seed + (0 if one.events else 10**6) for one in trials}
    axes: dict[str, Detector] = {
        axis: (
            lambda telemetry, axis=axis: alarms_over(
                [getattr(t.reading, axis) for t in telemetry], 2.5, 3.2
            )
        )  # type: ignore[misc]
        for axis in ("volatility", "entropy", "disagreement")
    }
    found = {"index": judge(trials, alarms_of_index, harm)}
    found |= {f"{axis} alone": judge(trials, detector, harm) for axis, detector in axes.items()}
    found["loss z-score, same rule"] = judge(trials, by_loss(2.5, 3.2), harm)
    most = found["index"]["false_per_10k"]
    for threshold in np.arange(2.5, 12.0, 0.1):
        matched = judge(trials, by_loss(threshold, threshold * 1.28), harm)
        if matched["false_per_10k"] <= most:
            break
    found["loss z-score, as few false alarms"] = {
        **matched,
        "threshold": round(float(threshold), 1),
    }
    return found


def made(jobs: Sequence[tuple[int, bool]], cache: Path | None, workers: int) -> Iterator[Trial]:
    """Yield the trials of the jobs in order, computed by `workers` processes."""
    if workers == 1:
        yield from (kept(job, cache) for job in jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(partial(kept, cache=cache), jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--runs", type=int, default=24, help="number of runs with events, and of clean runs"
    )
    parser.add_argument("--first-seed", type=int, default=1000, help="seed of the first run")
    parser.add_argument(
        "--harm",
        type=float,
        nargs="+",
        default=[0.1, 0.05],
        help="least rise of the validation loss of a harmful event, in nats",
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--cache",
        type=Path,
        help="folder for the measurements of the runs; runs found there are not trained again",
    )
    parser.add_argument(
        "--no-probe", action="store_true", help="leave out the measurements of the probe"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.runs)
    jobs = [(seed, eventful) for seed in seeds for eventful in (True, False)]
    if args.cache is not None:
        args.cache.mkdir(parents=True, exist_ok=True)
    trials = []
    for one in made(jobs, args.cache, args.workers):
        trials.append(replayed(one, probe=not args.no_probe))
        if not args.json:
            print(f"\r{len(trials)} of {len(jobs)} runs", end="", flush=True)
    report = {f"harm {harm:g} nats": results(trials, harm) for harm in args.harm}
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "detection",
                    "runs": args.runs,
                    "clean_steps": args.runs * STEPS,
                    "results": report,
                }
            )
        )
        return
    for title, found in report.items():
        print(f"\n{title}")
        for name, figures in found.items():
            print(f"  {name:34}", "  ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
