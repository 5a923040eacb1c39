"""Returns and speed of PPO and DQN in the imagination of the world model.

    python benchmarks/sb3.py [--json] [--decisions 20000] [--runs 3]

Roots are steps of short runs of the preset `tiny`, some with a learning rate that is too high.
Policies learn from some seeds and are evaluated on roots of other seeds. Returns are means over
held-out roots, in nats of ln(validation loss) to the end of the run as the model forecasts it (four
decisions, and its value from there), less charges. The standard error is that of the paired
difference to no intervention. `told` is the mean absolute error of the forecast of the whole fall
without an intervention, against the runs themselves. With `--json`, the last line of stdout is one
JSON object. Single process, single thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trainenv import worldmodel
from trainenv.agents.rl.learners import DQN, MOVING, PPO, Learner
from trainenv.agents.rl.policy import train_in_model
from trainenv.config.schema import RunConfig
from trainenv.envs.observation import FEATURES
from trainenv.envs.world_model import Divergence, WorldModelEnv
from trainenv.run import TrainingRun
from trainenv.training.history import history_of
from trainenv.types import DECISIONS, RunHistory, Telemetry, WorldModel

Act = Callable[[np.ndarray, Any], np.ndarray]
STEPS, DECISION = 300, 9
FACTORS = (1.0, 3.0, 10.0)  # multiples of the learning rate of `tiny`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    parser.add_argument(
        "--decisions", type=int, default=20_000, help="decisions from which each learner learns"
    )
    parser.add_argument("--runs", type=int, default=3, help="seeds of each learner")
    args = parser.parse_args()
    torch.set_num_threads(1)

    model = worldmodel.load_pretrained()
    known, (unknown, falls) = roots(seed=0)[0], roots(seed=100)
    env = imagined(model, unknown)
    rng = np.random.default_rng(0)
    nothing = returns(env, do_nothing)
    random = returns(env, lambda observation, info: rng.integers(0, [4, 3, 5, 2, 2, 2]))
    rows: dict[str, Any] = {
        "nothing": {"return": float(nothing.mean())},
        "random": against(nothing, random),
    }
    for name, learner in learners(args.decisions).items():
        found, spent = [], []
        for seed in range(args.runs):
            start = time.process_time()
            trained = train_in_model(model, known, config(1.0), learner(seed))
            spent.append((time.process_time() - start, trained.flops["model"]))
            found.append(returns(env, trained.policy.act))
        seconds, flops = np.mean(spent, axis=0)
        rows[name] = against(nothing, np.mean(found, axis=0)) | {
            "seconds": float(seconds),
            "flops": float(flops),
        }
    whole = returns(imagined(model, unknown, reach=None), do_nothing)
    told = {
        "within reach": float(abs(nothing - falls).mean()),
        "until the end": float(abs(whole - falls).mean()),
    }
    result = {
        "roots": [len(known), len(unknown)],
        "decisions": args.decisions,
        "returns": rows,
        "told": told,
        "speed": speeds(model, unknown),
    }
    for name, row in rows.items():
        print(f"{name:>20}  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(
        "error of the forecast of the whole fall, nats:",
        {name: round(error, 4) for name, error in told.items()},
    )
    print("decisions a second:", {name: round(rate) for name, rate in result["speed"].items()})
    if args.json:
        print(json.dumps(result))


def learners(decisions: int) -> dict[str, Callable[[int], Learner]]:
    """Functions that make a learner from a seed, by name."""
    return {
        "ppo": lambda seed: PPO(decisions=decisions, seed=seed, sees=FEATURES),
        "ppo, moving features": lambda seed: PPO(decisions=decisions, seed=seed, sees=MOVING),
        "dqn": lambda seed: DQN(decisions=decisions, seed=seed, sees=FEATURES),
        "dqn, moving features": lambda seed: DQN(decisions=decisions, seed=seed, sees=MOVING),
    }


def config(factor: float) -> RunConfig:
    """Configuration of a short run of `tiny`, its learning rate multiplied by `factor`."""
    overrides = {
        "steps": STEPS,
        "reset_warmup": 4,
        "schedule.warmup": 10,
        "optimizer.lr": 3e-3 * factor,
        "environment.decision_steps": DECISION,
        "validation.sequences": 16,
    }
    return RunConfig.load("tiny", overrides)


def roots(seed: int) -> tuple[list[RunHistory], np.ndarray]:
    """Histories of one run for each factor, at every third decision.

    Also returned is the fall of ln(validation loss) from each history to the end of its run.
    """
    histories, ends = list[RunHistory](), list[float]()
    for factor in FACTORS:
        run, telemetry = (
            TrainingRun.from_config(config(factor).model_copy(update={"seed": seed})),
            list[Telemetry](),
        )
        while not run.done:
            telemetry += run.advance(min(3 * DECISION, run.horizon.end - run.step))
            if not run.done:
                here = history_of(
                    run, tuple(telemetry), horizon=DECISIONS * DECISION, validation=run.evaluate()
                )
                histories.append(here)
        ends += [run.evaluate()] * (len(histories) - len(ends))
    return histories, np.log([history.validation for history in histories]) - np.log(ends)


def imagined(
    model: WorldModel, histories: Sequence[RunHistory], *, reach: int | None = DECISIONS
) -> WorldModelEnv:
    """Environment that evaluates policies: the model's expectation, without random draws."""
    return WorldModelEnv(model, histories, config(1.0), divergence="expected", reach=reach)


def do_nothing(observation: np.ndarray, info: Any) -> np.ndarray:
    """Return the action without an intervention."""
    return np.zeros(6, dtype=np.int64)


def returns(env: WorldModelEnv, act: Act) -> np.ndarray:
    """Measure the return from each root, [R]."""
    found = np.zeros(len(env.roots))
    for root in range(len(env.roots)):
        observation, info = env.reset(seed=root, options={"root": root})
        over = False
        while not over:
            observation, reward, terminated, truncated, info = env.step(act(observation, info))
            found[root] += reward
            over = terminated or truncated
    return found


def against(nothing: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Mean return, its difference to no intervention, and the standard error of that over roots."""
    gain = found - nothing
    return {
        "return": float(found.mean()),
        "gain": float(gain.mean()),
        "error": float(gain.std() / len(gain) ** 0.5),
    }


def speeds(model: WorldModel, histories: Sequence[RunHistory]) -> dict[str, float]:
    """Measure decisions a second of processor time with random actions, resets included.

    Environments run one at a time, and 64 together.
    """
    rates = {}
    divergences: tuple[Divergence, ...] = ("expected", "sampled")
    for divergence in divergences:
        env = WorldModelEnv(model, histories, config(1.0), divergence=divergence)
        for together in (1, 64):
            rates[f"{divergence}, {together}"] = max(
                _rate(env, together, 20 if together > 1 else 400) for _ in range(3)
            )
    return rates


def _rate(env: WorldModelEnv, together: int, times: int) -> float:
    rng = np.random.default_rng(0)

    def fresh() -> tuple[Any, Any]:
        return env.start(int(rng.integers(len(env.roots))))

    states, latents = (list(part) for part in zip(*(fresh() for _ in range(together))))
    actions = rng.integers(0, [4, 3, 5, 2, 2, 2], (times, together, 6))
    start = time.process_time()
    for chosen in actions:
        steps = env.imagine(states, np.stack(latents), list(chosen), rng)
        assert all(np.isfinite(step.after.observation).all() for step in steps)
        for place, step in enumerate(steps):
            states[place], latents[place] = (
                fresh() if step.after.over else (step.after, step.latent)
            )
    return together * times / (time.process_time() - start)


if __name__ == "__main__":
    main()
