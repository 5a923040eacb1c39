"""Simulated coverage and width of calibrated forecasts, on all candidates and on planners' picks.

A trunk has an error that all its forecasts share. Each of its decisions has an error too, and so
has each of the 128 candidates; the forecaster knows the size of the latter only roughly. The truth
varies less between candidates than the forecasts err, so the lowest forecast is low mostly because
of its error. The nominal coverage is 90 %: the raw quantiles claim it, and all calibrations aim at
it.

    python benchmarks/conformal.py --json     # about four minutes on one core
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np

from trainenv.worldmodel.conformal import (
    CQR,
    AdaptiveLevel,
    Calibration,
    Decision,
    Lowest,
    conformal_quantile,
    fit_selected,
)

ALPHA, CANDIDATES, DECISIONS, NORMAL = 0.1, 128, 6, 1.645
BIAS, SHARED, SPREAD, ODDNESS = (
    0.25,
    0.15,
    0.5,
    0.5,
)  # standard deviations: trunk error, decision error, truth, log size of errors
Rng = np.random.Generator


def decision(rng: Rng, trunk: int, bias: float, drift: float = 1.0) -> Decision:
    """Draw one decision of a trunk; unit: 1e-3 nats.

    All forecasts are off by `bias`, and every error is multiplied by `drift`.
    """
    truth = rng.normal(0, SPREAD, CANDIDATES) + rng.normal(0, 1)
    size = np.exp(rng.normal(0, ODDNESS, CANDIDATES))  # size of the error of each
    claimed = size * np.exp(rng.normal(0, 0.2, CANDIDATES))
    mean = truth + drift * (bias + rng.normal(0, SHARED) + size * rng.normal(0, 1, CANDIDATES))
    forecasts = {"mean": mean, "lower": mean - NORMAL * claimed, "upper": mean + NORMAL * claimed}
    return Decision(trunk=trunk, forecasts=forecasts, outcome=truth)


def trunks(rng: Rng, count: int, first: int = 0) -> list[Decision]:
    made = []
    for trunk in range(first, first + count):
        bias = rng.normal(0, BIAS)
        made += [decision(rng, trunk, bias) for _ in range(DECISIONS)]
    return made


def arrays(one: Decision) -> dict[str, Any]:
    """Forecasts and outcome by name, [M] each."""
    return {
        name: np.asarray(column)
        for name, column in (*one.forecasts.items(), ("outcome", one.outcome))
    }


def one_random(rng: Rng) -> Any:
    return lambda forecasts: rng.integers(len(forecasts["mean"]), size=1)


def by_row(calibration: Calibration) -> Calibration:
    """The same scores, treated as independent rows: an incorrect method, for comparison."""
    rows = np.arange(len(calibration.low))
    return Calibration(
        how=calibration.how,
        low=calibration.low,
        high=calibration.high,
        trunks=rows,
        strata=calibration.strata,
        weights=calibration.weights,
    )


def covered(
    calibration: Calibration | None, decisions: list[Decision], rule: Any
) -> dict[str, float]:
    """Coverage and width of the intervals of the picks.

    Returned are the share of picks covered, the share of decisions with all picks covered, the mean
    width, and the mean distance of the upper bound above the mean.
    """
    hits, all_hit, widths, heights = [], [], [], []
    for one in decisions:
        columns = arrays(one)
        picks = rule(columns)
        mean, lower, upper, outcome = (
            columns[name][picks] for name in ("mean", "lower", "upper", "outcome")
        )
        if calibration is not None:
            lower, upper = calibration.interval(lower, upper)
        hit = (lower <= outcome) & (outcome <= upper)
        hits.append(hit.mean())
        all_hit.append(hit.all())
        widths.append((upper - lower).mean())
        heights.append((upper - mean).mean())
    values = (hits, all_hit, widths, heights)
    return {
        name: float(np.mean(value))
        for name, value in zip(("coverage", "all_picks", "width", "height"), values)
    }


def one_repetition(rng: Rng, count: int, tested: int) -> dict[str, dict[str, float]]:
    """Calibrate on `count` trunks and test on `tested` new ones, by method."""
    known, new = trunks(rng, count), trunks(rng, tested, first=count)
    best, six, some = Lowest(), Lowest(count=6), one_random(rng)
    marginal = fit_selected(CQR(alpha=ALPHA), known, some)
    picked = fit_selected(CQR(alpha=ALPHA), known, best)
    methods = {
        "raw quantiles, random action": (None, some),
        "raw quantiles, best of 128": (None, best),
        "marginal, random action": (marginal, some),
        "marginal, best of 128": (marginal, best),
        "selected, best of 128": (picked, best),
        "selected by row, best of 128": (by_row(picked), best),
        "selected scaled, best of 128": (
            fit_selected(CQR(alpha=ALPHA, scaled=True), known, best),
            best,
        ),
        "selected upper bound, best of 128": (
            fit_selected(CQR(alpha=ALPHA, sides="upper"), known, best),
            best,
        ),
        "selected separate, best of 128": (
            fit_selected(CQR(alpha=ALPHA, sides="separate"), known, best),
            best,
        ),
        "marginal, top 6": (marginal, six),
        "selected, top 6": (fit_selected(CQR(alpha=ALPHA), known, six), six),
        "selected jointly, top 6": (fit_selected(CQR(alpha=ALPHA), known, six, joint=True), six),
    }
    return {name: covered(calibration, new, rule) for name, (calibration, rule) in methods.items()}


def band(values: list[float]) -> list[float]:
    """Mean over repetitions and its 95 % bootstrap interval.

    Infinite widths are left out; the list is empty if all are infinite.
    """
    found = np.array([v for v in values if math.isfinite(v)])
    if not len(found):
        return []
    draws = np.random.default_rng(0).choice(found, (1000, len(found))).mean(axis=1)
    return [round(float(x), 4) for x in (found.mean(), *np.quantile(draws, (0.025, 0.975)))]


def coverage(counts: list[int], repetitions: int, tested: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for count in counts:
        runs = [
            one_repetition(np.random.default_rng([count, r]), count, tested)
            for r in range(repetitions)
        ]
        results[str(count)] = {
            name: {
                **{key: band([run[name][key] for run in runs]) for key in runs[0][name]},
                "infinite": round(
                    float(np.mean([math.isinf(run[name]["height"]) for run in runs])), 3
                ),
            }
            for name in runs[0]
        }
    return results


def one_drift(
    rng: Rng, steps: int = 400, runs: int = 10, late: int = 8, recent: int = 80
) -> dict[str, float]:
    """Coverage on a stream of picks of ten runs, whose errors grow by 60 % halfway.

    Labels arrive up to `late` decisions later, unordered. `fixed` keeps level and scores;
    `adaptive` moves the level; `recent` moves it and takes its scores from the last 80 labels, row
    by row. Trunks are then no longer exchangeable, but the bound of the adaptive level assumes
    nothing.
    """
    best, fitted = Lowest(), fit_selected(CQR(alpha=ALPHA), trunks(rng, 40), Lowest())
    rule = AdaptiveLevel(alpha=ALPHA)
    states = {name: rule.init() for name in ("adaptive", "recent")}
    bias = rng.normal(0, BIAS, runs)
    due: dict[int, list[tuple[str, dict[str, bool], Any]]] = {}
    missed: dict[str, list[bool]] = {"fixed": [], "adaptive": [], "recent": []}
    widths: dict[str, list[float]] = {name: [] for name in missed}
    seen: list[Any] = []
    for step in range(steps):
        run = int(rng.integers(runs))
        columns = arrays(decision(rng, run, bias[run], drift=1.0 if step < steps // 2 else 1.6))
        pick = best(columns)
        row = [float(columns[name][pick][0]) for name in ("lower", "upper", "outcome")]
        ticket = ""
        for name in missed:
            calibration, level = fitted, ALPHA
            if name in states:
                ticket, level = rule.issue(states[name], run=str(run))
            if name == "recent" and len(seen) >= recent // 2:
                rows = np.array(seen[-recent:]).T
                calibration = CQR(alpha=ALPHA).fit(*rows, trunks=np.arange(rows.shape[1]))
            lower, upper = calibration.interval(row[:1], row[1:2], alpha=level)
            missed[name].append(not lower[0] <= row[2] <= upper[0])
            widths[name].append(float(upper[0] - lower[0]))
        misses = {name: missed[name][-1] for name in states}
        due.setdefault(step + int(rng.integers(1, late + 1)), []).append((ticket, misses, row))
        for arrived, labels, seen_row in due.pop(step, []):
            seen.append(seen_row)
            for name, state in states.items():
                rule.learn(state, {arrived: labels[name]})
    half = steps // 2
    figures = {"bound_on_misses": rule.report(states["adaptive"])["bound"]}
    for name, misses_of in missed.items():
        figures[f"{name}_before"] = 1 - float(np.mean(misses_of[:half]))
        figures[f"{name}_after"] = 1 - float(np.mean(misses_of[half:]))
        figures[f"{name}_last_100"] = 1 - float(np.mean(misses_of[-100:]))
        figures[f"{name}_infinite_after"] = float(np.mean(np.isinf(widths[name][half:])))
        finite = [width for width in widths[name][half:] if math.isfinite(width)]
        figures[f"{name}_median_finite_width_after"] = float(np.median(finite))
    return figures


def one_dependence(rng: Rng, count: int = 12) -> dict[str, float]:
    """Coverage of a row of a new trunk, without picks.

    A trunk's rows share an error, which is larger in trunks with few rows.
    """
    size = np.exp(rng.normal(0, 0.7, count + 200))
    rows = np.maximum(1, np.rint(20 / size**2)).astype(int)
    owner = np.repeat(np.arange(len(size)), rows)
    scores = np.abs(size * rng.normal(0, 1, len(size)))[owner] + np.abs(
        0.3 * rng.normal(0, 1, len(owner))
    )
    known, new = owner < count, owner >= count
    weight = 1 / rows[owner[new]] / 200
    limits = {
        "by_trunk": conformal_quantile(scores[known], alpha=ALPHA, trunks=owner[known]),
        "by_row": conformal_quantile(scores[known], alpha=ALPHA),
    }
    return {name: float(weight @ (scores[new] <= limit)) for name, limit in limits.items()}


def one_gate(rng: Rng) -> dict[str, float]:
    """Simulate a gate that abstains where the ensemble disagrees.

    The disagreement follows the size of the error. A tenth of the new decisions is unlike the known
    ones: their errors are 4 times as large.
    """

    def made(count: int, strange: float) -> tuple[Any, ...]:
        odd = rng.random(count) < strange
        size = np.exp(rng.normal(0, 0.4, count)) * np.where(odd, 4.0, 1.0)
        return (
            odd,
            size * np.sqrt(rng.chisquare(4, count) / 4),
            size * rng.normal(0, 1, count),
        )  # five members

    _, known, _ = made(40, 0.0)
    limit = conformal_quantile(known, alpha=ALPHA)
    odd, disagreement, error = made(500, 0.1)
    abstains = disagreement > limit
    return {
        "abstains_on_known": float(abstains[~odd].mean()),
        "abstains_on_unknown": float(abstains[odd].mean()),
        "error_kept": float(np.abs(error[~abstains]).mean()),
        "error_abstained": float(np.abs(error[abstains]).mean()),
    }


def repeated(trial: Any, repetitions: int) -> dict[str, list[float]]:
    runs = [trial(np.random.default_rng([7, r])) for r in range(repetitions)]
    return {name: band([run[name] for run in runs]) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--trunks",
        type=int,
        nargs="+",
        default=[10, 20, 40, 80],
        help="numbers of calibration trunks",
    )
    parser.add_argument(
        "--repetitions", type=int, default=200, help="repetitions of each simulation"
    )
    parser.add_argument("--tested", type=int, default=30, help="new trunks in each repetition")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    results = {
        "benchmark": "conformal",
        "nominal": 1 - ALPHA,
        "repetitions": args.repetitions,
        "coverage": coverage(args.trunks, args.repetitions, args.tested),
        "dependence": repeated(one_dependence, args.repetitions),
        "drift": repeated(one_drift, args.repetitions),
        "gate": repeated(one_gate, args.repetitions),
    }
    if args.json:
        print(json.dumps(results))
        return
    for count, methods in results["coverage"].items():
        print(f"{count} calibration trunks: mean [95 % interval]")
        for name, row in methods.items():
            print(f"  {name:34}", "  ".join(f"{key} {value}" for key, value in row.items()))
    for part in ("dependence", "drift", "gate"):
        print(part)
        for name, values in results[part].items():
            print(f"  {name:34}", values)


if __name__ == "__main__":
    main()
