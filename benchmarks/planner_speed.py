"""How fast the planners are, and what their choices cost against the best that there was.

    OMP_NUM_THREADS=1 python benchmarks/planner_speed.py [--json] [--repeats 30] [--folder
    runs/worldmodel]

*Speed*: CPU times of this process, all its threads together, the least and the median over repeats. One function a planner. The
model and the executor are next to free there, but for the rows with the loaded model.

*Regret*, with `--folder` as `trainenv worldmodel build` makes it: at every snapshot of the test trunks at which all legal
interventions were tried, each planner chooses one, with the model of that folder and an executor that looks up what was really
measured. Its regret is the Δ ln loss of its choice less the lowest there was, at the horizon, annealed and at the end of the run;
the mean over `--seeds` of the planner, with 95 % bootstrap intervals over trunks. All have the same budget: `--futures` looks of
the model and the real steps of `--branches` whole branches (horizon and cool-down), of which each spends what it can use.

- Nothing followed what was tried, so nothing may follow what is planned (`masks_after`), and the choice is exactly what was
  measured; PBT's copies stay as they are. Of the row `mcts, sequences` the first intervention is
  judged alone.
- Cool-downs were measured from the horizon only. So who compares short branches (PBT, PB2, AutoLRS, halving) compares the loss
  as it is there; the others that try for real run whole branches and compare the annealed loss.
- `nothing`, `random choice`, `model on all` (the model's best of all options) and `look on all` (a perfect look at +N) have no
  budget. If fewer than 8 such snapshots are of test trunks, those of the trunks for calibration are
  taken, too.

The last line of stdout is one JSON object with `--json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainenv.planners.search import Root
    from trainenv.types import (
        Budget,
        Forecast,
        Intervention,
        Plan,
        Planner,
        PlanningProblem,
        RunHistory,
        WorldModel,
    )
    from trainenv.worldmodel.dataset import Dataset
    from trainenv.worldmodel.dataset.recorded_executor import RecordedExecutor

Floats = NDArray[np.float32]
Row = dict[str, Any]

ACTIONS, SIMULATIONS, WIDTH = 16, 50, 64
TARGETS = ("horizon", "annealed", "final")
ENOUGH = 8  # snapshots


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model of the size that searches are compared at: one hidden layer for the dynamics, one matrix for all heads."""

    move: Floats  # [W, W]
    act: Floats  # [A, W]
    heads: Floats  # [W, 2 + A]: reward, value, logits

    @classmethod
    def random(cls, rng: np.random.Generator) -> Network:
        shapes = {"move": (WIDTH, WIDTH), "act": (ACTIONS, WIDTH), "heads": (WIDTH, 2 + ACTIONS)}
        return cls(
            **{
                name: (rng.normal(size=shape) / np.sqrt(WIDTH)).astype(np.float32)
                for name, shape in shapes.items()
            }
        )

    def root(self, latent: Floats) -> Root:
        from trainenv.planners.search import Root

        found = latent @ self.heads
        return Root(value=found[:, 1], logits=found[:, 2:], latent=latent)

    def __call__(
        self, latent: Floats, actions: NDArray[np.intp]
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """(latent [B, W], actions [B]) → (reward [B], value [B], logits [B, A], latent [B, W])."""
        after = latent.dot(self.move)
        after += self.act.take(actions, 0)
        np.tanh(after, out=after)
        found = after.dot(self.heads)
        return found[:, 0], found[:, 1], found[:, 2:], after


def seconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """CPU time of a call: the least, and the median."""
    taken = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken[1:]), float(np.median(taken[1:]))


def mcts(repeats: int, model: WorldModel | None) -> dict[str, Row]:
    """16 actions, 50 simulations, a network 64 wide, the network's time included.

    Goals: 3 ms for one root, 300 000/s at 64.
    """
    from trainenv.planners.search import PUCT, Gumbel, search

    rng = np.random.default_rng(0)
    network, result = Network.random(rng), dict[str, Any]()
    for roots in (1, 64):
        latent = rng.normal(size=(roots, WIDTH)).astype(np.float32)
        root, actions = network.root(latent), rng.integers(0, ACTIONS, roots)
        for name, rule in (("gumbel", Gumbel()), ("puct", PUCT())):
            generator = np.random.default_rng(1)
            least, median = seconds(
                lambda root=root, rule=rule, generator=generator: search(
                    root, network, rule=rule, simulations=SIMULATIONS, generator=generator
                ),
                repeats,
            )
            result[f"{name}_{roots}_roots"] = {
                "ms": round(1e3 * least, 3),
                "ms_median": round(1e3 * median, 3),
                "simulations_per_second": round(roots * SIMULATIONS / least),
                "simulations_per_second_median": round(roots * SIMULATIONS / median),
            }
        alone, _ = seconds(
            lambda latent=latent, actions=actions: [
                network(latent, actions) for _ in range(SIMULATIONS)
            ],
            repeats,
        )
        result[f"network_{roots}_roots"] = {"ms": round(1e3 * alone, 3)}
    return result | (timed({"plan_model": {}}, "mcts", repeats, model) if model else {})


@dataclass(frozen=True)
class Free:
    """A model that takes no time: everything is forecast alike."""

    one: Forecast

    def forecast(self, history: RunHistory, interventions: Sequence[Any], /) -> list[Forecast]:
        return [self.one] * len(interventions)


def toy_problem(model: Any = None) -> PlanningProblem:
    """A calm run of 128 steps, every value of each part legal: 480 interventions; the executor is a formula."""
    from trainenv.planners.testing import ToyModel, ToyWorld
    from trainenv.types import Budget, Intervention

    world = ToyWorld(unsafe=None)
    free = Free(ToyModel(world).forecast(None, [Intervention()])[0])  # type: ignore[arg-type]
    masks = tuple(np.ones(size, dtype=np.bool_) for size in world.codec.sizes)
    return world.problem(
        masks=masks, masks_after=None, model=model or free, budget=Budget(futures=None)
    )


def timed(
    variants: Mapping[str, Mapping[str, Any]],
    planner: str,
    repeats: int,
    model: Any = None,
    *,
    asks: int = 0,
) -> dict[str, Row]:
    """Milliseconds a plan of each variant, and an ask of the `asks` of it."""
    from trainenv import planners
    from trainenv.planners.testing.toy import ToyExecutor, ToyWorld

    rows = {}
    for name, hyper in variants.items():
        made, problem = planners.make(planner, **hyper), toy_problem(model)

        def plan(made: Planner = made, problem: PlanningProblem = problem) -> Plan:
            fresh = ToyExecutor(ToyWorld(unsafe=None))  # it remembers what it has run
            return made.plan(replace(problem, executor=fresh, generator=np.random.default_rng(0)))

        least, median = (round(1e3 * value, 3) for value in seconds(plan, repeats))
        rows[name] = {"ms": least, "ms_median": median}
        if asks:
            rows[name] |= {
                "ms_ask": round(least / asks, 3),
                "ms_ask_median": round(median / asks, 3),
            }
    return rows


def grid(repeats: int, model: WorldModel | None) -> dict[str, Row]:
    """128 candidates. Goal: 6 ms."""
    rows = timed({"128": {"candidates": 128}}, "grid", repeats)
    return rows | (
        timed({"128_model": {"candidates": 128}}, "grid", repeats, model) if model else {}
    )


def random(repeats: int, model: WorldModel | None) -> dict[str, Row]:
    """128 candidates."""
    return timed({"128": {"candidates": 128}}, "random", repeats)


def bayes(repeats: int, model: WorldModel | None) -> dict[str, Row]:
    """64 asks one after the other; by Gaussian process, three times only.

    Goal: 10 ms an ask of TPE.
    """
    tpe = timed({"tpe_64_asks": {"candidates": 64}}, "bayes", min(repeats, 5), asks=64)
    return tpe | timed({"gp_64_asks": {"candidates": 64, "sampler": "gp"}}, "bayes", 1, asks=64)


def bandit(repeats: int, model: WorldModel | None) -> dict[str, Row]:
    """128 candidates, 16 arms, 32 pulls."""
    return timed(
        {method: {"method": method} for method in ("thompson", "ucb", "halving")}, "bandit", repeats
    )


def pbt(repeats: int, model: WorldModel | None) -> dict[str, Row]:
    """8 members, 4 generations; and with PB2's exploration."""
    return timed({explore: {"explore": explore} for explore in ("perturb", "pb2")}, "pbt", repeats)


def autolrs(repeats: int, model: WorldModel | None) -> dict[str, Row]:
    """The four learning rates that can be reached."""
    return timed({"plan": {}}, "autolrs", repeats)


SPEEDS: Mapping[str, Callable[[int, Any], dict[str, Row]]] = {
    "mcts": mcts, "grid": grid, "random": random, "bayes": bayes, "bandit": bandit, "pbt": pbt, "autolrs": autolrs,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A planner as it is compared.

    Args:
        planner: itself.
        measure: what its scores are of.
        alone: whether it may plan single interventions only, as they were tried.
    """

    planner: Planner
    measure: str = "annealed"
    alone: bool = True


def contenders(tried: RecordedExecutor, futures: int, branches: int) -> dict[str, Contender]:
    """The planners at a snapshot, by name: who asks the model, who asks both, who tries for real."""
    from trainenv.planners import make

    whole: dict[str, Any] = {"judge": "executor", "steps": tried.horizon, "candidates": branches}
    # Doing nothing is forecast beside the candidates; with more of them than there are looks, no
    # arm would be pulled.
    seen: dict[str, Any] = {"candidates": max(1, futures - 1)}
    pulled: dict[str, Any] = {"arms": max(1, branches - 1), "steps": tried.horizon, **seen}
    halved: dict[str, Any] = {
        "method": "halving",
        "arms": 8,
        "steps": tried.look,
        **seen,
    }  # the last one reaches the horizon
    return {
        "grid": Contender(planner=make("grid")),
        "random": Contender(planner=make("random")),
        "bayes tpe": Contender(planner=make("bayes")),
        "bayes gp": Contender(planner=make("bayes", sampler="gp")),
        "mcts gumbel": Contender(planner=make("mcts")),
        "mcts puct": Contender(planner=make("mcts", variant="puct")),
        "mcts by forecast": Contender(planner=make("mcts", rank_by="forecast", simulations=40)),
        "mcts, sequences": Contender(planner=make("mcts"), alone=False),
        "bandit thompson": Contender(planner=make("bandit", **pulled)),
        "bandit ucb": Contender(planner=make("bandit", method="ucb", **pulled)),
        "bandit halving": Contender(planner=make("bandit", **halved), measure="horizon"),
        "pbt": Contender(planner=make("pbt"), measure="horizon"),
        "pb2": Contender(planner=make("pbt", explore="pb2"), measure="horizon"),
        "autolrs": Contender(planner=make("autolrs"), measure="horizon"),
        "random, tried": Contender(planner=make("random", **whole)),
        "bayes tpe, tried": Contender(planner=make("bayes", startup=4, **whole)),
    }


def chosen(
    contender: Contender,
    tried: RecordedExecutor,
    history: RunHistory,
    model: WorldModel,
    budget: Budget,
    seed: Sequence[int],
) -> Plan:
    """The plan of a contender where these interventions were tried."""
    from trainenv.interventions import ActionCodec
    from trainenv.planners import Score
    from trainenv.types import PlanningProblem

    return contender.planner.plan(
        PlanningProblem(
            history=history,
            codec=ActionCodec(),
            masks=tried.masks,
            masks_after=tried.masks_after if contender.alone else None,
            generator=np.random.default_rng(seed),
            model=model,
            executor=tried.fresh(),
            criterion=Score(measure=contender.measure),  # type: ignore[arg-type]
            budget=budget,
        )
    )


def truths(data: Dataset) -> NDArray[np.float64]:
    """[branches, 3] Δ ln loss by target; 0 for controls."""
    from trainenv.worldmodel.dataset import effects

    found = np.zeros((len(data.branches), len(TARGETS)))
    found[(data.branches["kind"] != "control").to_numpy()] = effects(data)[list(TARGETS)].to_numpy()
    return found


def judged(
    data: Dataset,
    model: WorldModel,
    rows: Sequence[int],
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> tuple[dict[str, list[Row]], list[str]]:
    """Of each rule what it chose at each snapshot (regret by target, and what it spent), and the trunks of the snapshots."""
    from trainenv.planners import Score
    from trainenv.types import Budget, Intervention
    from trainenv.worldmodel.dataset.recorded_executor import RecordedExecutor
    from trainenv.worldmodel.dataset.run_histories import recorded_history

    truth, score = truths(data), Score()
    found: dict[str, list[Row]] = {}
    for row in rows:
        tried, history = RecordedExecutor(data, row), recorded_history(data, row)
        options = list(tried.rows)
        outcomes = truth[list(tried.rows.values())]  # [m, 3]
        regrets = outcomes - outcomes.min(axis=0)  # NaN throughout where one is unknown
        place = {option: number for number, option in enumerate(options)}
        free = {
            "nothing": regrets[place[Intervention()]],
            "random choice": regrets.mean(axis=0),
            "model on all": regrets[_best(model, history, options, score.expected)],
            "look on all": regrets[int(np.argmin(outcomes[:, 0]))],
        }
        for name, regret in free.items():
            found.setdefault(name, []).append({"regret": regret})
        budget = Budget(
            futures=args.futures, steps=args.branches * (tried.horizon + tried.cooldown)
        )
        for name, contender in contenders(tried, args.futures, args.branches).items():
            plans = [
                chosen(contender, tried, history, model, budget, (seed, row))
                for seed in range(args.seeds)
            ]
            picks = [plan.best.interventions[0] for plan in plans]
            found.setdefault(name, []).append(
                {
                    "regret": regrets[[place[pick] for pick in picks]].mean(axis=0),
                    "nothing": np.mean([pick.does_nothing for pick in picks]),
                    "futures": np.mean([plan.cost.futures for plan in plans]),
                    "branches": np.mean([plan.cost.steps for plan in plans])
                    / (tried.horizon + tried.cooldown),
                    "faults": np.mean([bool(plan.faults) for plan in plans]),
                }
            )
        say(f"snapshot {row} of {data.snapshots['trunk'].iloc[row]}: {len(options)} options")
    return found, [str(name) for name in data.snapshots["trunk"].iloc[list(rows)]]


def _best(
    model: WorldModel,
    history: RunHistory,
    options: Sequence[Intervention],
    expected: Callable[[Forecast], float],
) -> int:
    """The place of the option that the model expects most of; doing nothing where the model refuses the history."""
    from trainenv.types import UserError

    try:
        return int(np.argmin([expected(forecast) for forecast in model.forecast(history, options)]))
    except UserError:
        return 0


def summary(
    found: Mapping[str, Sequence[Row]], trunks: Sequence[str], resamples: int = 2000
) -> dict[str, Row]:
    """A row a rule: mean regrets with intervals over trunks, differences to doing nothing and to the grid, what it spent."""
    from trainenv.worldmodel.evaluation.statistics import bounds, mean, resampled, value

    names = sorted(set(trunks))
    trunk = np.array([names.index(name) for name in trunks])
    weights = resampled(np.ones(len(names), dtype=np.bool_), resamples, 0)
    regrets = {
        name: np.stack([row["regret"] for row in rows]) for name, rows in found.items()
    }  # [snapshots, 3]

    def leaf(values: NDArray[np.float64]) -> Row:
        statistic = mean(values, trunk, len(names))
        low, high = bounds(statistic.of(weights))
        numbers = (
            {"value": value(statistic), "low": low, "high": high}
            if statistic.units
            else dict.fromkeys(("value", "low", "high"))
        )
        return {**numbers, "snapshots": statistic.units, "trunks": int(statistic.trunks.sum())}

    table: dict[str, Row] = {}
    for name, rows in found.items():
        table[name] = {
            target: leaf(regrets[name][:, place]) for place, target in enumerate(TARGETS)
        }
        for other in ("nothing", "grid"):
            table[name][f"less_{other}"] = {
                target: leaf(regrets[name][:, place] - regrets[other][:, place])
                for place, target in enumerate(TARGETS)
            }
        spent = [key for key in rows[0] if key != "regret"]
        table[name] |= {f"mean_{key}": float(np.mean([row[key] for row in rows])) for key in spent}
    return table


def regret(args: argparse.Namespace, say: Callable[[str], None]) -> Row:
    """The comparison on the exhaustive part of the data set in `--folder`."""
    from trainenv.worldmodel import serialization
    from trainenv.worldmodel.build import Recipe, split
    from trainenv.worldmodel.dataset import Dataset
    from trainenv.worldmodel.dataset.recorded_executor import exhaustive_snapshots

    data, model = Dataset.open(args.folder / "branches"), serialization.load(args.folder / "model")
    parts, of = split(data, Recipe().seed), data.snapshots["trunk"].to_numpy()
    every, used = exhaustive_snapshots(data), ["test"]
    if np.isin(of[every], parts["test"]).sum() < ENOUGH:
        used = ["calibrate", "test"]
    rows = [int(row) for row in every if any(of[row] in parts[part] for part in used)]
    found, trunks = judged(data, model, rows, args, say)
    about = {
        "trunks_of": used,
        "snapshots": len(rows),
        "trunks": len(set(trunks)),
        "seeds": args.seeds,
    }
    return {
        **about,
        "budget": {"futures": args.futures, "branches": args.branches},
        "table": summary(found, trunks),
    }


def shown(report: Row) -> str:
    """The table of regrets, in thousandths of ln loss."""

    def cell(leaf: Row) -> str:
        numbers = [leaf[key] for key in ("value", "low", "high")]
        return (
            f"{'-':>22}"
            if numbers[0] is None
            else "{:7.2f} [{:6.2f},{:6.2f}]".format(*(1e3 * number for number in numbers))
        )

    where = " and ".join(report["trunks_of"])
    lines = [
        f"regret, 1e-3 ln loss, {report['snapshots']} snapshots of {report['trunks']} trunks "
        f"({where})",
        f"{'':17}{'horizon':>24}{'annealed':>24}{'final':>24}{'annealed less nothing':>24}{'annealed less grid':>24}"
        "  idle futures branches faults",
    ]
    for name, row in report["table"].items():
        cells = [
            *(row[target] for target in TARGETS),
            row["less_nothing"]["annealed"],
            row["less_grid"]["annealed"],
        ]
        spent = [
            f"{row.get(f'mean_{key}', float('nan')):8.2f}"
            for key in ("nothing", "futures", "branches", "faults")
        ]
        lines.append(f"{name:17}" + " ".join(cell(one) for one in cells) + "".join(spent))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    parser.add_argument("--repeats", type=int, default=30, help="timings of each; 0: none")
    parser.add_argument(
        "--folder", type=Path, help="what `trainenv worldmodel build` made; without it no regret"
    )
    parser.add_argument(
        "--futures", type=int, default=64, help="looks of the model that a plan may take"
    )
    parser.add_argument(
        "--branches",
        type=int,
        default=9,
        help="whole real branches that a plan may run, the control among them",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="plans of each planner at each snapshot"
    )
    args = parser.parse_args(arguments)
    result: Row = {}
    if args.repeats:
        from trainenv.worldmodel import serialization

        model = serialization.load(args.folder / "model") if args.folder else None
        result |= {name: speed(args.repeats, model) for name, speed in SPEEDS.items()}
    for planner, rows in result.items():
        for name, row in rows.items():
            print(
                f"{planner:8} {name:20} "
                + "  ".join(f"{key} {value:g}" for key, value in row.items())
            )
    if args.folder:
        result["regret"] = regret(
            args, lambda sentence: print(sentence, file=sys.stderr, flush=True)
        )
        print(shown(result["regret"]))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
