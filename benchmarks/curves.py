"""Forecasts of real loss curves: mean absolute error, coverage and cost of each forecaster of `trainenv.worldmodel.curves`.

The curves are those published with the multi-power law (Luo et al. 2025): 9 schedules of a 25M and
a 400M model. A forecast is made at every `--stride`-th row but the first 16, from the rows so far
and the learning rates to come, and compared with the row 500, 1000, 2000 or 4000 steps later. An
error is a mean over curves of each curve's mean over its windows, in 1e-3 nats, with a 90 %
interval from resampling curves. "change": the learning rate changes in the window; "steep": by a
fifth or more; "same": not at all.

Where a law comes from, which is never fitted on the future of the curve that is forecast (nor, but
for `alone` and `model`, on any of that curve):

    alone       the rows so far of that curve, around the library's default belief (whose centre was
    set with the laws of all
                these curves in view: the one way in which they are not new to it)
    schedules   the 8 other curves of the model; rows that two curves share (branches of one run)
    are taken out families    the same without the schedules of its kind (the cosines; the
    constants; the WSDs; the steps down) three       constant and cosine of 24000 steps and
    `wsdcon_9` (the paper's training curves); the 6 others are forecast model       the rows so far,
    around the law of the *other* model

    python benchmarks/curves.py --data data/loss_curves --json
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trainenv.worldmodel.curves import FORECASTERS, CurveForecaster, History, MultiPower

HORIZONS = (500, 1000, 2000, 4000)
WARMUP, FIRST = 2160, 16
KINDS = {
    "constant": "constant",
    "cosine": "cosine",
    "wsd": "wsd",
    "wsdld": "wsd",
    "wsdcon": "wsdcon",
}
THREE = ("constant_24000", "cosine_24000", "wsdcon_9")
Model = dict[str, History]


def load(folder: Path) -> Model:
    """The curves of one model by the name of their schedule."""
    curves = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            rows = [
                (float(row["step"]), float(row["loss"]), float(row["lr"]))
                for row in csv.DictReader(file)
            ]
        steps, losses, lrs = (np.array(column) for column in zip(*rows))
        before = lrs[0] * (
            steps[0] - WARMUP / 2
        )  # the warm-up is linear, and over at the first row
        curves[path.stem] = History(steps=steps, losses=losses, lrs=lrs, first_lr_sum=float(before))
    return curves


def kind(name: str) -> str:
    return KINDS[name.split("_")[0]]


def without(history: History, held_out: History) -> History | None:
    """A history in which no row counts as measured that also stands in the curve that is held out."""
    other = dict(zip(held_out.steps.tolist(), held_out.losses.tolist()))
    losses = [
        np.nan if other.get(s) == loss else loss
        for s, loss in zip(history.steps.tolist(), history.losses.tolist())
    ]
    if not np.isfinite(losses).any():
        return None
    return History(
        steps=history.steps,
        losses=np.array(losses),
        lrs=history.lrs,
        first_lr_sum=history.first_lr_sum,
    )


def pooled(base: MultiPower, curves: Model, name: str, others: list[str]) -> MultiPower:
    histories = [without(curves[other], curves[name]) for other in others]
    return base.pooled([history for history in histories if history is not None])


def sources(
    models: dict[str, Model],
) -> dict[str, Callable[[MultiPower, str, str], MultiPower | None]]:
    """How the forecaster of one curve is made from `MultiPower`, by the name of the protocol."""
    laws = {
        model: MultiPower().pooled(list(curves.values())).law for model, curves in models.items()
    }

    def chosen(
        keep: Callable[[str, str], bool],
    ) -> Callable[[MultiPower, str, str], MultiPower | None]:
        return lambda base, model, name: pooled(
            base, models[model], name, [o for o in models[model] if keep(o, name)]
        )

    def other_model(base: MultiPower, model: str, name: str) -> MultiPower | None:
        law = next((law for other, law in laws.items() if other != model), None)
        return None if law is None else MultiPower(law=law, spread=1.0, anchored=base.anchored)

    three = chosen(lambda other, name: other in THREE)
    return {
        "alone": lambda base, model, name: base,
        "schedules": chosen(lambda other, name: other != name),
        "families": chosen(lambda other, name: kind(other) != kind(name)),
        "three": lambda base, model, name: None if name in THREE else three(base, model, name),
        "model": other_model,
    }


def windows(
    forecaster: CurveForecaster, history: History, stride: int
) -> tuple[list[dict[str, float]], list[float]]:
    """Every window's error, standard deviation and change of the learning rate; and the seconds of every fit."""
    found, seconds = [], []
    for now in range(FIRST, len(history.steps) - 1, stride):
        ends = [
            int(np.searchsorted(history.steps, history.steps[now] + horizon))
            for horizon in HORIZONS
        ]
        last = min(max(ends) + 1, len(history.steps))
        seen = history.until(history.steps[now])
        started = time.process_time()
        fitted = forecaster.fit(seen)
        seconds.append(time.process_time() - started)
        mean, std = fitted.predict(history.steps[now + 1 : last], history.lrs[now + 1 : last])
        for horizon, end in zip(HORIZONS, ends):
            if end < len(history.steps):
                lrs, at = history.lrs[now : end + 1], end - now - 1
                change = float(lrs.max() / lrs.min() - 1)
                error = abs(float(mean[at]) - float(history.losses[end]))
                found.append(
                    {"horizon": horizon, "error": error, "std": float(std[at]), "change": change}
                )
    return found, seconds


def average(
    curves: dict[str, list[dict[str, float]]], horizon: int, least: float, most: float
) -> list[float] | None:
    """Mean over curves and its 90 % interval, 1e-3 nats: [mean, low, high]."""
    chosen = [
        np.mean(errors)
        for rows in curves.values()
        if (
            errors := [
                1e3 * r["error"]
                for r in rows
                if r["horizon"] == horizon and least <= r["change"] <= most
            ]
        )
    ]
    if not chosen:
        return None
    rng = np.random.Generator(np.random.Philox(key=0))
    resampled = rng.choice(np.array(chosen), (2000, len(chosen))).mean(axis=1)
    return [
        round(float(value), 2) for value in (np.mean(chosen), *np.quantile(resampled, (0.05, 0.95)))
    ]


def coverage(curves: dict[str, list[dict[str, float]]], least: float, most: float) -> list[float]:
    """Share of errors at +2000 within the nominal 50 % and 90 % intervals."""
    rows = [
        r
        for rows in curves.values()
        for r in rows
        if r["horizon"] == 2000 and least <= r["change"] <= most
    ]
    return [
        round(float(np.mean([r["error"] < z * r["std"] for r in rows])), 2) for z in (0.674, 1.645)
    ]


def evaluate(
    make: Callable[[str, str], CurveForecaster | None], models: dict[str, Model], stride: int
) -> dict[str, Any]:
    """All figures of one forecaster."""
    by_curve, seconds = {}, []
    for model, curves in models.items():
        for name, history in curves.items():
            forecaster = make(model, name)
            if forecaster is not None:
                by_curve[f"{model} {name}"], spent = windows(forecaster, history, stride)
                seconds += spent
    limits = {"change": (1e-6, np.inf), "steep": (0.2, np.inf), "same": (0.0, 1e-6)}
    result: dict[str, Any] = {
        case: {f"+{horizon}": average(by_curve, horizon, *limit) for horizon in HORIZONS}
        for case, limit in limits.items()
    }
    for model in models:
        own = {name: rows for name, rows in by_curve.items() if name.startswith(f"{model} ")}
        result[f"{model} change +2000"] = average(own, 2000, *limits["change"])
    result["covered of 50 %, 90 %"] = {
        case: coverage(by_curve, *limits[case]) for case in ("change", "same")
    }
    result["fit_ms"] = round(1e3 * float(np.median(seconds)), 2)
    return result


def batch_cost(models: dict[str, Model], repeats: int = 30) -> dict[str, float]:
    """Milliseconds of one call of 128 candidates × 2000 steps for a held law: every step asked for, and the last alone."""
    curves = next(iter(models.values()))
    history = curves["cosine_72000"].until(20000)
    fitted = MultiPower().pooled([curves[name] for name in THREE]).fit(history)
    steps = history.now + 1 + np.arange(2000)
    lrs = history.lrs[-1] * np.linspace(0.5, 1.5, 128)[:, None] * np.linspace(1.0, 0.8, 2000)
    spent: dict[str, list[float]] = {"all": [], "last": []}
    for _ in range(repeats):
        for name, at in (("all", None), ("last", [-1])):
            started = time.perf_counter()
            fitted.predict(steps, lrs, at=at)
            spent[name].append(1e3 * (time.perf_counter() - started))
    return {
        f"{name}_{how}_ms": round(float(f(v)), 2)
        for name, v in spent.items()
        for how, f in (("least", min), ("median", np.median))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/loss_curves"),
        help="folder with a folder of .csv a model",
    )
    parser.add_argument("--stride", type=int, default=2, help="rows from one forecast to the next")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    models = {
        folder.name: load(folder)
        for folder in sorted(args.data.iterdir())
        if any(folder.glob("*.csv"))
    }
    if not models:
        parser.error(f"--data must hold a folder of .csv files a model, found none in {args.data}")
    results: dict[str, Any] = {}
    made = sources(models)
    for name, base in FORECASTERS.items():
        for protocol, source in made.items() if isinstance(base, MultiPower) else [("", None)]:
            label = f"{name} {protocol}".strip()
            results[label] = evaluate(
                lambda m, n, b=base, s=source: b if s is None else s(b, m, n), models, args.stride
            )
            if not args.json:
                change, steep, same = (
                    results[label][case]["+2000"] for case in ("change", "steep", "same")
                )
                print(
                    f"{label:32} +2000: change {change}  steep {steep}  same {same}  fit "
                    f"{results[label]['fit_ms']} ms",
                    flush=True,
                )
    cost = batch_cost(models)
    laws = {
        model: asdict(MultiPower().pooled(list(curves.values())).law)
        for model, curves in models.items()
    }
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "curves",
                    "unit": "1e-3 nats",
                    "forecasters": results,
                    "128 x 2000": cost,
                    "laws": laws,
                }
            )
        )
    else:
        print(
            "128 candidates × 2000 steps:",
            "  ".join(f"{key} {value}" for key, value in cost.items()),
        )


if __name__ == "__main__":
    main()
