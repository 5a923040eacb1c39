"""Whole trees of a few searches, as the independent search finds them. Run as a script it writes the files anew.

python tests/planners/search_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.search_reference import GumbelReference, Node, PUCTReference, World

GOLDEN = Path(__file__).parents[1] / "files" / "golden"
CASES: dict[str, dict[str, Any]] = {
    "gumbel": {"seed": 1, "actions": 6, "simulations": 32, "considered": 4},
    "gumbel_evaluating": {"seed": 2, "actions": 4, "simulations": 40, "quiet": True},
    "gumbel_masked_shallow": {
        "seed": 3,
        "actions": 5,
        "simulations": 30,
        "legal": [0, 2, 3],
        "depth": 3,
        "discount": 0.9,
    },
    "puct": {"seed": 4, "actions": 5, "simulations": 32},
    "puct_masked_shallow": {
        "seed": 5,
        "actions": 4,
        "simulations": 30,
        "legal": [1, 2],
        "depth": 2,
        "discount": 0.8,
    },
}


def solve(case: dict[str, Any]) -> dict[str, Any]:
    """The world, the noise and the whole tree of a case, as JSON values."""
    rng = np.random.default_rng(case["seed"])
    actions, rule = case["actions"], case["rule"]
    world = World.random(rng, states=24, actions=actions)
    for name in ("rewards", "values", "logits"):
        setattr(world, name, getattr(world, name).round(4))
    noise = (rng.gumbel(size=actions) if rule == "gumbel" else rng.gamma(0.3, size=actions)).round(
        4
    )
    noise = noise * (not case.get("quiet", False))
    legal = case.get("legal", list(range(actions)))
    options = {
        "simulations": case["simulations"],
        "depth": case.get("depth"),
        "discount": case.get("discount", 1.0),
    }
    if rule == "gumbel":
        options["considered"] = case.get("considered", 16)
    kind = GumbelReference if rule == "gumbel" else PUCTReference
    found = kind(world=world, state=0, legal=legal, noise=noise.tolist(), **options).run()
    return {
        "rule": rule,
        "options": options,
        "legal": legal,
        "noise": noise.tolist(),
        "world": {
            name: getattr(world, name).tolist()
            for name in ("follow", "rewards", "values", "logits")
        },
        "action": found.action,
        "policy": [found.policy.get(action, 0.0) for action in range(actions)],
        "nodes": [told(node, actions) for node in found.nodes],
    }


def told(node: Node, actions: int) -> dict[str, Any]:
    return {
        "state": node.state,
        "depth": node.depth,
        "reward": node.reward,
        "value": node.value,
        "children": [node.children[a].number if a in node.children else -1 for a in range(actions)],
        "visits": [node.n(a) for a in range(actions)],
        "q": [round(node.q(a), 12) if node.n(a) else 0.0 for a in range(actions)],
    }


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, case in CASES.items():
        text = json.dumps(solve(case | {"rule": name.split("_")[0]}), indent=None)
        (GOLDEN / f"{name}.json").write_text(
            text.replace('{"state"', '\n{"state"') + "\n", encoding="utf-8"
        )
