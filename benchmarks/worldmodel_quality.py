"""Quality of the world model's forecasts, against simpler methods, on runs not used for fitting.

*Table*: error of Δ ln loss where the intervention matters (|Δ| above twice the seed noise),
ranking, risk, coverage and regret. Its rows are the model as `trainenv worldmodel build` makes it,
every baseline, and ablations of the model: without the state, with shuffled actions, without the
law, without a group of features, with recurrent dynamics.

*Left out*: trained without a width, a corpus, a stressor or an action family, and evaluated on it.

*Online*: rollouts of a left-out corpus are learned one snapshot after another; the error on new and
on known corpora.

*Speed*: 128 candidates, and one step of 64 states, on one core (processor time, minimum and median
of 50).

    trainenv worldmodel build --out runs/worldmodel
    python benchmarks/worldmodel_quality.py --folder runs/worldmodel --json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainenv import TrainingRun
from trainenv.interventions import ActionCodec
from trainenv.training.history import history_of
from trainenv.worldmodel import serialization
from trainenv.worldmodel.baselines import BASELINES, ActionShuffled, Baseline, Blind
from trainenv.worldmodel.build import Recipe, split
from trainenv.worldmodel.dataset import Dataset, leave_action_out, leave_out
from trainenv.worldmodel.evaluation import compare, evaluate, seed_noise
from trainenv.worldmodel.examples import TARGETS, Examples, Predictions
from trainenv.worldmodel.features import GROUPS
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.networks import Architecture
from trainenv.worldmodel.online import Online, OnlineModel
from trainenv.worldmodel.training import Training, fit

LEFT_OUT = (
    ("width", "64"),
    ("corpus", "words"),
    ("stressor", "rare_tokens"),
    ("faults", "lr_spike"),
)
FAMILIES = ("clip", "momentum_reset")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The networks as a baseline: neither calibrated nor rounded."""

    training: Training = field(default_factory=Training)
    architecture: Architecture = field(default_factory=Architecture)

    def fit(self, examples: Examples) -> Model:
        return Model(fit(examples, self.training, self.architecture))


@dataclass(frozen=True, kw_only=True)
class Without:
    """Baseline whose model never sees one group of features, or the law."""

    of: Learned
    group: str

    def fit(self, examples: Examples) -> Keeping:
        return Keeping(of=self.of.fit(examples.without(self.group)), group=self.group)


@dataclass(frozen=True, kw_only=True, eq=False)
class Keeping:
    """Fitted model of `Without`; it removes the same group before a prediction."""

    of: Model
    group: str

    def predict(self, examples: Examples) -> Predictions:
        return self.of.predict(examples.without(self.group))


def ablations(recipe: Recipe) -> dict[str, Baseline]:
    """The networks, complete and with one part removed."""
    learned = Learned(training=recipe.training, architecture=recipe.architecture)
    recurrent = replace(learned, architecture=replace(recipe.architecture, dynamics="recurrent"))
    return {
        "networks": learned,
        "recurrent dynamics": recurrent,
        "blind": Blind(of=learned),
        "actions shuffled": ActionShuffled(of=learned),
        **{f"without {group}": Without(of=learned, group=group) for group in ("law", *GROUPS)},
    }


def predicted(
    name: str, baseline: Baseline, train: Examples, test: Examples
) -> tuple[str, Predictions, float]:
    """Fit and predict in a separate process; also return its processor seconds."""
    torch.set_num_threads(1)
    started = time.process_time()
    found = baseline.fit(train).predict(test)
    return name, found, time.process_time() - started


def all_predicted(
    tasks: Sequence[tuple[str, Baseline, Examples, Examples]],
    workers: int,
    say: Callable[[str], None],
) -> dict[str, Predictions]:
    """Predictions of every task, by name."""
    found = {}
    with ProcessPoolExecutor(workers) as pool:
        for future in [pool.submit(predicted, *task) for task in tasks]:
            name, predictions, seconds = future.result()
            found[name] = predictions
            say(f"{name}: {seconds:.0f} s")
    return found


def table(
    data: Dataset,
    examples: Examples,
    model: Model,
    recipe: Recipe,
    workers: int,
    say: Callable[[str], None],
    quick: bool,
) -> dict[str, Any]:
    """Evaluate the model, the baselines and the ablations on the test trunks."""
    parts = split(data, recipe.seed)
    train, test = examples.among(parts["train"]), examples.among(parts["test"])
    noise = seed_noise(examples)[np.isin(examples.trunks, parts["test"])[examples.trunk]]
    some = {"networks": ablations(recipe)["networks"]} if quick else ablations(recipe)
    tasks = [(name, baseline, train, test) for name, baseline in {**BASELINES, **some}.items()]
    found = {"model": model.predict(test), **all_predicted(tasks, workers, say)}
    reports = {name: evaluate(test, one, noise=noise) for name, one in found.items()}
    picks = evaluate(test, model.predict(test, picks=True), noise=noise)
    against = {
        name: _summary(compare(test, found["model"], one, noise=noise))
        for name, one in found.items()
        if name != "model"
    }
    return {
        "models": reports,
        "model_against": against,
        "picks": {target: picks[target]["intervals"]["selected"] for target in TARGETS},
    }


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Select the figures of a comparison that have goals."""
    return {
        **{f"{target} mae mattering": report[target]["mattering"]["mae"] for target in TARGETS},
        **{f"{target} crps": report[target]["all"]["crps"] for target in TARGETS},
        **{f"{target} regret": report["regret"][target]["annealed"]["mean"] for target in TARGETS},
    }


def left_out(
    data: Dataset, examples: Examples, recipe: Recipe, workers: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Train without one part of the data, and evaluate on that part.

    Compared are the networks, the trees and no intervention.
    """
    learned = Learned(training=recipe.training, architecture=recipe.architecture)
    tried: dict[str, Baseline] = {
        "networks": learned,
        "trees": BASELINES["trees"],
        "nothing": BASELINES["nothing"],
    }
    noise, cases = seed_noise(examples), {}

    def rows_of(names: Sequence[str]) -> NDArray[np.bool_]:
        return np.isin(examples.trunks, names)[examples.trunk]

    for column, level in LEFT_OUT:
        for found, others, those in leave_out(data.trunks, column):
            if found == level:
                cases[f"{column} {level}"] = rows_of(others), rows_of(those)
    parts = split(data, recipe.seed)
    for family in FAMILIES:
        rows, test = leave_action_out(
            data.branches, family, train=parts["train"] + parts["calibrate"], test=parts["test"]
        )
        cases[f"action {family}"] = rows, test
    tasks = [
        (f"{case}|{name}", one, examples.where(train), examples.where(test))
        for case, (train, test) in cases.items()
        for name, one in tried.items()
    ]
    found = all_predicted(tasks, workers, say)
    result: dict[str, dict[str, Any]] = {}
    for case, (_, test) in cases.items():
        result[case] = {}
        for name in tried:
            report = evaluate(
                examples.where(test), found[f"{case}|{name}"], noise=noise[test], resamples=300
            )
            result[case][name] = {
                "annealed mae mattering": report["annealed"]["mattering"]["mae"],
                "annealed crps": report["annealed"]["all"]["crps"],
                "final regret": report["regret"]["final"]["annealed"]["mean"],
            }
    return result


def online(data: Dataset, examples: Examples, recipe: Recipe) -> dict[str, Any]:
    """Let a model that was fitted without a corpus learn it online.

    Measured are the errors before and after, on that corpus and on the known ones.
    """
    level = "words"
    others, those = next(
        (others, those)
        for found, others, those in leave_out(data.trunks, "corpus")
        if found == level
    )
    parts = split(data, recipe.seed)
    known = [name for name in others if name in parts["train"]]
    held = examples.among([name for name in others if name in parts["calibrate"]])
    old = examples.among([name for name in others if name in parts["test"]])
    from trainenv.worldmodel.calibration import Calibrations

    start = Model(fit(examples.among(known), recipe.training, recipe.architecture))
    start = Model(start.networks, Calibrations.fit(held, start.raw(held)))
    rng = np.random.default_rng(0)
    whole = examples.among(known)
    rehearsal = whole.where(np.sort(rng.permutation(len(whole))[:1000]))
    half = len(those) // 2
    stream, fresh = examples.among(those[:half]), examples.among(those[half:])
    learning = OnlineModel(start, rehearsal, Online(refresh=200))
    for snapshot in np.unique(stream.snapshot):
        learning.learn_examples(stream.where(stream.snapshot == snapshot))
    rows = {}
    for name, test in (("new corpus", fresh), ("known corpora", old)):
        rows[name] = _summary(compare(test, learning.model.predict(test), start.predict(test)))
        for when, model in (("before", start), ("after", learning.model)):
            intervals = evaluate(test, model.predict(test), resamples=300)["annealed"]["intervals"]
            rows[name][f"coverage {when}"] = intervals["marginal"]["coverage"]
    return {"learned": len(stream), "runs": half, "levels": learning.report(), **rows}


def speed(model: Model) -> dict[str, Any]:
    """Milliseconds on one core."""
    run = TrainingRun.from_config("tiny", {"steps": 600})
    telemetry = run.advance(400)
    history = history_of(run, telemetry, horizon=72, validation=run.evaluate())
    legal = list(ActionCodec(run.config.interventions).all_legal(run))
    candidates = [legal[place % len(legal)] for place in range(128)]
    root = model.initial_inference([history] * 64)
    codec = ActionCodec(run.config.interventions)
    actions = np.stack([codec.encode(one) for one in candidates[:64]])
    return {
        "forecast_128_ms": _timed(lambda: model.forecast(history, candidates)),
        "recurrent_64_ms": _timed(lambda: model.recurrent_inference(root.latent, actions)),
    }


def _timed(call: Callable[[], Any], repeats: int = 50) -> dict[str, float]:
    call()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(1000 * (time.process_time() - started))
    return {"least": round(min(times), 3), "median": round(float(np.median(times)), 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/worldmodel"),
        help="folder made by `trainenv worldmodel build`",
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only baselines and speed: no ablations, left-out data or online learning",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def say(sentence: str) -> None:
        if not args.json:
            print(sentence, flush=True)

    data = Dataset.open(args.folder / "branches")
    recipe = Recipe(trunks=max(60, len(data.trunks)))
    examples, model = Examples.of(data), serialization.load(args.folder / "model")
    result: dict[str, Any] = {"benchmark": "worldmodel", "speed": speed(model)}
    say(json.dumps(result["speed"]))
    result |= table(data, examples, model, recipe, args.workers, say, args.quick)
    if not args.quick:
        result["left_out"] = left_out(data, examples, recipe, args.workers, say)
        result["online"] = online(data, examples, recipe)
    if args.json:
        print(json.dumps(result))
        return
    for name, report in result["models"].items():
        print(f"{name:22}", _row(report))
    print(
        json.dumps(
            {key: value for key, value in result.items() if key not in ("models", "model_against")},
            indent=1,
        )
    )


def _row(report: Mapping[str, Any]) -> str:
    def number(leaf: Mapping[str, Any], scale: float = 1000.0) -> str:
        return "     -" if leaf["value"] is None else f"{scale * leaf['value']:6.2f}"

    cells = []
    for target in TARGETS:
        part, regret = report[target], report["regret"][target]["annealed"]["mean"]
        coverage = number(part["intervals"]["marginal"]["coverage"], 100)
        errors = f"mae {number(part['mattering']['mae'])} crps {number(part['all']['crps'])}"
        cells.append(f"{target}: {errors} regret {number(regret)} covers {coverage}")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
