"""A second search, to hold the first against: plain recursion over node objects, formulas as they stand in the papers.

It shares nothing with `trainenv.planners.search`. `search_golden` writes its trees to files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np


@dataclass
class World:
    """A small world of numbered states: what comes next [S, A], rewards [S, A], values [S], logits [S, A]."""

    follow: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    logits: np.ndarray

    @classmethod
    def random(
        cls, rng: np.random.Generator, *, states: int = 60, actions: int, spread: float = 1.0
    ) -> World:
        return cls(
            follow=rng.integers(0, states, (states, actions)),
            rewards=rng.normal(0, spread, (states, actions)),
            values=rng.normal(0, spread, states),
            logits=rng.normal(0, 1.5, (states, actions)),
        )

    def __call__(self, latent: np.ndarray, actions: np.ndarray) -> tuple[Any, Any, Any, Any]:
        """The model that `trainenv.planners.search` takes: latent [B, 1] is the state's number."""
        states = latent[:, 0]
        after = self.follow[states, actions]
        return self.rewards[states, actions], self.values[after], self.logits[after], after[:, None]


@dataclass
class Node:
    state: int
    reward: float
    value: float
    logits: list[float]
    depth: int
    number: int = 0
    children: dict[int, Node] = field(default_factory=dict)
    returns: dict[int, list[float]] = field(default_factory=dict)

    def n(self, action: int) -> int:
        return len(self.returns.get(action, ()))

    def q(self, action: int) -> float:
        return fmean(self.returns[action])

    @property
    def visits(self) -> int:
        return sum(map(len, self.returns.values()))


def softmax(scores: dict[int, float]) -> dict[int, float]:
    top = max(scores.values())
    weights = {action: math.exp(score - top) for action, score in scores.items()}
    return {action: weight / math.fsum(weights.values()) for action, weight in weights.items()}


def best_of(scores: dict[int, float]) -> int:
    return min(scores, key=lambda action: (-scores[action], action))


@dataclass
class Reference(ABC):
    """One tree. `below` is a node of an earlier search to go on from."""

    world: World
    state: int
    simulations: int
    legal: list[int]
    depth: int | None = None
    discount: float = 1.0
    below: Node | None = None

    def __post_init__(self) -> None:
        self.root = Node(
            self.state,
            0.0,
            float(self.world.values[self.state]),
            self.world.logits[self.state].tolist(),
            0,
        )
        self.nodes = [self.root]
        if self.below is not None:
            self.adopt(self.below)

    def adopt(self, old: Node) -> None:
        self.root.children = {a: child for a, child in old.children.items() if a in self.legal}
        self.root.returns = {a: list(found) for a, found in old.returns.items() if a in self.legal}

        def visit(node: Node, depth: int) -> None:
            node.depth = depth
            for child in node.children.values():
                visit(child, depth + 1)

        visit(self.root, 0)

    def run(self) -> Reference:
        for _ in range(self.simulations):
            self.simulate(self.root)
        return self

    def simulate(self, node: Node) -> float:
        action = self.at_root() if node is self.root else self.inside(node)
        child = node.children.get(action)
        if child is None:
            after = int(self.world.follow[node.state, action])
            reward = float(self.world.rewards[node.state, action])
            child = Node(
                after,
                reward,
                float(self.world.values[after]),
                self.world.logits[after].tolist(),
                node.depth + 1,
            )
            child.number = len(self.nodes)
            self.nodes.append(child)
            node.children[action] = child
            later = child.value
        else:
            later = child.value if child.depth == self.depth else self.simulate(child)
        found = child.reward + self.discount * later
        node.returns.setdefault(action, []).append(found)
        return found

    @abstractmethod
    def at_root(self) -> int:
        """The action that the next simulation starts with."""

    @abstractmethod
    def inside(self, node: Node) -> int:
        """The action that it goes on with."""


@dataclass
class GumbelReference(Reference):
    noise: list[float] = field(default_factory=list)
    considered: int = 16
    offset: float = 50.0
    scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.before = {action: self.root.n(action) for action in self.legal}
        self.turns = self.halving(min(self.considered, len(self.legal)))

    def halving(self, count: int) -> Any:
        """Which number of visits is next, for ever: rounds of sweeps over the `count` best, then over the better half."""
        rounds = math.ceil(math.log2(count)) if count > 1 else 1
        visits = 0
        while True:
            for _ in range(max(1, math.floor(self.simulations / (rounds * count)))):
                for _ in range(count):
                    yield visits
                visits += 1
            count = max(2, count // 2) if count > 1 else 1

    def completed(self, node: Node, actions: list[int]) -> dict[int, float]:
        priors = softmax(dict(enumerate(node.logits)))
        tried = [action for action in actions if node.n(action)]
        mixed = node.value
        if tried:
            mass = math.fsum(priors[action] for action in tried)
            mean = math.fsum(priors[action] * node.q(action) for action in tried) / mass
            mixed = (node.value + node.visits * mean) / (1 + node.visits)
        return {action: node.q(action) if node.n(action) else mixed for action in actions}

    def sigma(self, node: Node, actions: list[int]) -> dict[int, float]:
        completed = self.completed(node, actions)
        low, high = min(completed.values()), max(completed.values())
        factor = (self.offset + max(node.n(action) for action in actions)) * self.scale
        return {
            action: factor * (q - low) / max(high - low, 1e-8) for action, q in completed.items()
        }

    def scores(self) -> dict[int, float]:
        sigma = self.sigma(self.root, self.legal)
        return {
            action: self.noise[action] + self.root.logits[action] + sigma[action]
            for action in self.legal
        }

    def lately(self, action: int) -> int:
        return self.root.n(action) - self.before[action]

    def at_root(self) -> int:
        turn, scores = next(self.turns), self.scores()
        return best_of(
            {action: score for action, score in scores.items() if self.lately(action) == turn}
        )

    def inside(self, node: Node) -> int:
        actions = list(range(len(node.logits)))
        sigma = self.sigma(node, actions)
        improved = softmax({action: node.logits[action] + sigma[action] for action in actions})
        return best_of(
            {action: improved[action] - node.n(action) / (1 + node.visits) for action in actions}
        )

    @property
    def action(self) -> int:
        most = max(map(self.lately, self.legal))
        return best_of(
            {
                action: score
                for action, score in self.scores().items()
                if self.lately(action) == most
            }
        )

    @property
    def policy(self) -> dict[int, float]:
        sigma = self.sigma(self.root, self.legal)
        return softmax({action: self.root.logits[action] + sigma[action] for action in self.legal})


@dataclass
class PUCTReference(Reference):
    noise: list[float] = field(default_factory=list)  # gamma variates
    share: float = 0.25
    untried: str = "lowest"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.low, self.high = math.inf, -math.inf
        self.widen(self.root)

    def widen(self, node: Node) -> None:
        for action, child in node.children.items():
            self.low, self.high = min(self.low, node.q(action)), max(self.high, node.q(action))
            self.widen(child)

    def simulate(self, node: Node) -> float:
        before = {action: node.n(action) for action in range(len(node.logits))}
        found = super().simulate(node)
        action = next(action for action, count in before.items() if node.n(action) > count)
        self.low, self.high = min(self.low, node.q(action)), max(self.high, node.q(action))
        return found

    def choose(self, node: Node, priors: dict[int, float]) -> int:
        count = 1 + node.visits
        scores = {}
        for action, prior in priors.items():
            scaled = 0.0
            if self.high - self.low > 1e-8:
                if node.n(action):
                    scaled = (node.q(action) - self.low) / (self.high - self.low)
                elif self.untried == "node":
                    everything = [
                        node.value,
                        *(found for returns in node.returns.values() for found in returns),
                    ]
                    scaled = min(
                        1.0, max(0.0, (fmean(everything) - self.low) / (self.high - self.low))
                    )
            explored = (
                prior
                * math.sqrt(count)
                / (1 + node.n(action))
                * (1.25 + math.log((count + 19652 + 1) / 19652))
            )
            scores[action] = scaled + explored
        return best_of(scores)

    def at_root(self) -> int:
        priors = softmax({action: self.root.logits[action] for action in self.legal})
        total = math.fsum(self.noise[action] for action in self.legal)
        return self.choose(
            self.root,
            {
                a: (1 - self.share) * p + self.share * self.noise[a] / total
                for a, p in priors.items()
            },
        )

    def inside(self, node: Node) -> int:
        return self.choose(node, softmax(dict(enumerate(node.logits))))

    @property
    def action(self) -> int:
        return min(
            self.legal, key=lambda a: (-self.root.n(a), -self.root.q(a) if self.root.n(a) else 0.0)
        )

    @property
    def policy(self) -> dict[int, float]:
        return {action: self.root.n(action) / self.root.visits for action in self.legal}
