"""Speed of the synthetic environment, and returns of simple policies and PPO in it.

    python benchmarks/synthetic.py [--json] [--ppo-steps 60000]

Returns are means over the same held-out seeds, with spikes, in nats of ln(validation loss) less
charges. `bound` is the known optimum, `optimum()`: no policy can do better. With `--json`, the last
line of stdout is one JSON object. Single process, single thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from trainenv.envs.synthetic import SyntheticEnv
from trainenv.types import Intervention

Policy = Callable[[SyntheticEnv, np.ndarray], np.ndarray]
SEEDS = range(1000, 1050)
NOTHING = np.zeros(6, dtype=np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    parser.add_argument("--decisions", type=int, default=20_000, help="number of decisions to time")
    parser.add_argument(
        "--ppo-steps",
        type=int,
        default=60_000,
        help="decisions from which PPO learns; 0: no PPO",
    )
    args = parser.parse_args()

    result = {"decisions_per_second": speed(args.decisions), **_values_per_second()}
    returns = {name: evaluate(policy) for name, policy in policies().items()}
    returns |= {
        "reference": _planned(lambda env: env.reference()),
        "optimal plan without spikes": _planned(lambda e: e.optimum()[1]),
    }
    returns["bound"] = float(np.mean([_fresh(seed).optimum()[0] for seed in SEEDS]))
    if args.ppo_steps:
        returns["ppo"], result["ppo_seconds"] = ppo(args.ppo_steps)
    for name, value in {**result, **returns}.items():
        print(f"{name:>30}  {value:.4g}")
    if args.json:
        print(json.dumps({**result, "ppo_steps": args.ppo_steps, "returns": returns}))


def speed(decisions: int, rounds: int = 3) -> float:
    """Measure decisions a second with random actions, resets included.

    The best round counts, because other work shares the machine.
    """
    rng = np.random.default_rng(0)
    env, rates = SyntheticEnv(), []
    for _ in range(rounds):
        actions = rng.integers(0, env.action_space.nvec, (decisions // rounds, 6))
        env.reset(seed=0)
        start = time.perf_counter()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        rates.append(len(actions) / (time.perf_counter() - start))
    return max(rates)


def policies() -> dict[str, Policy]:
    """Policies to compare; each receives the environment and its last observation."""
    rng = np.random.default_rng(0)

    def greedy(env: SyntheticEnv, _: np.ndarray) -> np.ndarray:
        """Choose the learning rate that is best one decision ahead, by running each."""
        tried = [np.array([rate, 0, 0, 0, 0, 0]) for rate in range(4)]
        return max(tried, key=lambda action: env.fork().step(action)[1])

    return {
        "nothing": lambda env, _: NOTHING,
        "random": lambda env, _: rng.integers(0, env.action_space.nvec),
        "greedy, one decision ahead": greedy,
    }


def evaluate(policy: Policy) -> float:
    """Mean return over `SEEDS`."""
    returns = []
    for seed in SEEDS:
        env = SyntheticEnv()
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy(env, observation))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def ppo(steps: int) -> tuple[float, float]:
    """Train PPO for `steps` decisions.

    Returned are its mean return, with deterministic actions, and the seconds of learning.
    """
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    envs = make_vec_env(SyntheticEnv, n_envs=8, seed=0)
    model = PPO(
        "MlpPolicy",
        envs,
        n_steps=240,
        batch_size=240,
        gamma=1.0,
        ent_coef=0.002,
        seed=0,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    return evaluate(
        lambda env, observation: model.predict(observation, deterministic=True)[0]
    ), seconds


def _planned(plan: Callable[[SyntheticEnv], list[Intervention]]) -> float:
    """Mean return of a plan that is made at the start of each episode."""
    ahead: dict[str, list[Intervention]] = {}

    def policy(env: SyntheticEnv, _: np.ndarray) -> np.ndarray:
        if env.state.decision == 0:
            ahead["plan"] = plan(env)
        return env.codec.encode(ahead["plan"][env.state.decision])

    return evaluate(policy)


def _values_per_second(times: int = 1000) -> dict[str, float]:
    env, rates = _fresh(0), {}
    snapshot = env.snapshot()
    for name, call in {
        "forks": env.fork,
        "snapshots": env.snapshot,
        "restores": lambda: env.restore(snapshot),
    }.items():
        start = time.perf_counter()
        for _ in range(times):
            call()
        rates[f"{name}_per_second"] = times / (time.perf_counter() - start)
    start = time.perf_counter()
    env.optimum()
    return rates | {"optimum_seconds": time.perf_counter() - start}


def _fresh(seed: int) -> SyntheticEnv:
    env = SyntheticEnv()
    env.reset(seed=seed)
    return env


if __name__ == "__main__":
    main()
