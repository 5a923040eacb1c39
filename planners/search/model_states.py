"""Futures of a run as the states of a search: what joins a `WorldModel` to `search`.

The search's actions are columns of a fixed list of candidates, action vectors [A, 6]; its latent
[B, 1] is a place in the lists here, where each state keeps the model's own latent, the model's
logits and the interventions that led to it. The policy over the candidates is the model's,
renormalised; candidates that the masks forbid in a state get next to no probability there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search.rules import Bools, Floats, Ints, Root, Stepped, Tree
from trainenv.types import Inference, Intervention, Masks, PlanningProblem, UserError, WorldModel

FORBIDDEN = 100.0  # nats below the least likely candidate: no return makes up for that
Path = tuple[Intervention, ...]
State = tuple[NDArray[Any], Floats, Path]


class ModelFailed(Exception):
    """A world model raised something, or returned what is no inference."""


class Imagined:
    """States that a model imagined from a run; callable as the model of a search.

    Args:
        problem: what the masks and the codec are of.
        model: what imagines.
        spend: called with the number of states before the model is.
        known: states of an earlier search to go on from, as of now.

    Attributes:
        vectors: [A, 6] the candidates; `choose` sets them.
        interventions: what they do.
        states: of each state the model's latent [1, …], its logits [L], and what led to it.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        model: WorldModel,
        spend: Callable[[int], None],
        known: Sequence[State] = (),
    ) -> None:
        self._problem = problem
        self._model = model
        self._spend = spend
        self.states = list(known)
        self.choose(np.zeros((1, len(problem.codec.sizes)), dtype=np.int64))

    def choose(self, vectors: NDArray[np.int64]) -> None:
        """Make these the candidates."""
        sizes = self._problem.codec.sizes
        firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.vectors = vectors
        self.interventions = [self._problem.codec.decode(vector) for vector in vectors]
        self._parts = np.zeros(
            (sum(sizes), len(vectors))
        )  # [L, A]: 1 where a candidate has that value in that part
        np.put_along_axis(self._parts, (vectors + firsts).T, 1.0, axis=0)

    def begin(self) -> tuple[float, Floats]:
        """The run as it is now, as a state of its own at the end of the list: its value and logits [L].

        Raises:
            ModelFailed: see there.
        """
        self._spend(1)
        _, values, _ = self._asked(
            lambda: self._model.initial_inference([self._problem.history]), [()]
        )
        return float(values[0]), self.states[-1][1]

    def root(self, value: float) -> Root:
        """The state that `begin` made, for the candidates chosen since."""
        place = len(self.states) - 1
        return Root(
            value=np.array([value]), logits=self.policy([place]), latent=np.array([[place]])
        )

    def __call__(self, latent: NDArray[Any], actions: Ints) -> Stepped:
        """The model of a search; see `contract.Recurrent`.

        Raises:
            ModelFailed: see there.
        """
        before = latent[:, 0].tolist()
        vectors = self.vectors[actions]
        paths = [
            (*self.states[place][2], self.interventions[action])
            for place, action in zip(before, actions.tolist())
        ]
        self._spend(len(before))
        latents = np.concatenate([self.states[place][0] for place in before])
        rewards, values, places = self._asked(
            lambda: self._model.recurrent_inference(latents, vectors), paths
        )
        return rewards, values, self.policy(places), np.array(places)[:, None]

    def policy(self, places: Sequence[int]) -> Floats:
        """Logits over the candidates, [B, A], of states."""
        logits: Floats = np.stack([self.states[place][1] for place in places]) @ self._parts
        allowed = np.stack([self.allowed(self.states[place][2]) for place in places])
        least = np.minimum.reduce(logits, axis=1, keepdims=True) - FORBIDDEN
        return np.where(allowed, logits, least)

    def allowed(self, path: Path) -> Bools:
        """Which candidates the masks allow after some interventions, [A]."""
        after = self._problem.masks_after
        masks: Masks = self._problem.masks if not path or after is None else after(path)
        allowed: Bools = np.logical_and.reduce(
            [mask[values] for mask, values in zip(masks, self.vectors.T)]
        )
        return allowed

    def path(self, tree: Tree, node: int) -> Path:
        """The interventions that lead to a node of a searched tree."""
        return self.states[int(tree.latent[0, node, 0])][2]

    def _asked(
        self, ask: Callable[[], Inference], paths: Sequence[Path]
    ) -> tuple[Floats, Floats, list[int]]:
        """Rewards and values [B], and the places of the new states."""
        first = len(self.states)
        batch = len(paths)
        try:
            found = ask()
            shapes = [np.shape(part) for part in (found.reward, found.value, found.logits)]
            expected = [(batch,), (batch,), (batch, len(self._parts))]
            if shapes != expected or len(found.latent) != batch:
                raise UserError(
                    f"expected reward, value and logits of the shapes {expected}, and as many latents, found {shapes}"
                )
            logits = np.asarray(found.logits, dtype=np.float64)
            self.states += [
                (found.latent[b : b + 1], logits[b], path) for b, path in enumerate(paths)
            ]
            return (
                np.asarray(found.reward),
                np.asarray(found.value),
                list(range(first, first + batch)),
            )
        except Exception as error:
            raise ModelFailed(f"{type(error).__name__}: {error}") from error
