"""How fast the planners are.

    OMP_NUM_THREADS=1 python benchmarks/planners.py [--json] [--repeats 30]

The last line of stdout is one JSON object with `--json`. Times are CPU times of this process, all its threads together, the least
and the median over repeats. One function a planner.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from planners.search import Root

# Python looks in this folder first, where this file would be found for the package of the same name.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

Floats = NDArray[np.float32]

ACTIONS, SIMULATIONS, WIDTH = 16, 50, 64


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model of the size that searches are compared at: one hidden layer for the dynamics, one matrix for all heads."""

    move: Floats  # [W, W]
    act: Floats  # [A, W]
    heads: Floats  # [W, 2 + A]: reward, value, logits

    @classmethod
    def random(cls, rng: np.random.Generator) -> Network:
        shapes = {"move": (WIDTH, WIDTH), "act": (ACTIONS, WIDTH), "heads": (WIDTH, 2 + ACTIONS)}
        return cls(**{name: (rng.normal(size=shape) / np.sqrt(WIDTH)).astype(np.float32) for name, shape in shapes.items()})

    def root(self, latent: Floats) -> Root:
        from planners.search import Root

        found = latent @ self.heads
        return Root(value=found[:, 1], logits=found[:, 2:], latent=latent)

    def __call__(self, latent: Floats, actions: NDArray[np.intp]) -> tuple[Floats, Floats, Floats, Floats]:
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


def mcts(repeats: int) -> dict[str, Any]:
    """16 actions, 50 simulations, a network 64 wide, the network's time included. Goals: 3 ms for one root, 300 000/s at 64."""
    from planners.search import PUCT, Gumbel, search

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
        alone, _ = seconds(lambda latent=latent, actions=actions: [network(latent, actions) for _ in range(SIMULATIONS)], repeats)
        result[f"network_{roots}_roots"] = {"ms": round(1e3 * alone, 3)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--repeats", type=int, default=30, help="timings of each")
    args = parser.parse_args()
    result = {"mcts": mcts(args.repeats)}
    for planner, rows in result.items():
        for name, row in rows.items():
            print(f"{planner:8} {name:20} " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
