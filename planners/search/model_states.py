"""Futures of a run as the states of a search: the link between a `WorldModel` and `search`.

The actions of the search are columns of a fixed list of candidates, which are action vectors
[A, parts]. Its latent [B, 1] is an index into the lists here: each state keeps the latent and the
logits of the world model and the interventions that led to it. The policy over the candidates is
the model's, renormalised. Candidates that the masks forbid in a state get almost no probability
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search.contract import Bools, Floats, Ints, Root, Transition, Tree
from trainenv.planners.support.sequences import Interventions
from trainenv.tools.error_text import describe_error
from trainenv.types import Inference, PlanningProblem, UserError, WorldModel

FORBIDDEN = 100.0  # nats below the least likely candidate: more than any return can outweigh
State = tuple[NDArray[Any], Floats, Interventions]


class ModelFailed(Exception):
    """The world model raised an error, or returned no sound inference."""


class ModelStates:
    """States that a world model imagines from a run; callable as the model of a search.

    Args:
        problem: Problem that has the history, the masks and the codec.
        model: World model.
        spend: Function called with the number of states before the model infers them.
        known: States of an earlier search to continue from, relative to the run as it is now.

    Attributes:
        vectors: Action vectors of the candidates, [A, parts]; `choose` sets them.
        interventions: Interventions of the candidates.
        states: States so far: the model's latent [1, …], its logits [L] and the interventions that
            led to the state; L is the number of values of all parts together.
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
        """Set the candidates, action vectors [A, parts]."""
        sizes = self._problem.codec.sizes
        firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.vectors = vectors
        self.interventions = [self._problem.codec.decode(vector) for vector in vectors]
        # [L, A]: 1 where a candidate has that value in that part
        self._parts = np.zeros((sum(sizes), len(vectors)))
        np.put_along_axis(self._parts, (vectors + firsts).T, 1.0, axis=0)

    def begin(self) -> tuple[float, Floats]:
        """Add the run as it is now to the states; return its value and its logits [L].

        Raises:
            ModelFailed: The model raised an error or returned no sound inference.
        """
        self._spend(1)
        _, values, _ = self._infer(
            lambda: self._model.initial_inference([self._problem.history]), [()]
        )
        return float(values[0]), self.states[-1][1]

    def root(self, value: float) -> Root:
        """Return the state that `begin` made as a root over the candidates chosen since."""
        place = len(self.states) - 1
        return Root(
            value=np.array([value]), logits=self.policy([place]), latent=np.array([[place]])
        )

    def __call__(self, latent: NDArray[Any], actions: Ints) -> Transition:
        """Answer as the model of a search; see `Recurrent`.

        Raises:
            ModelFailed: The model raised an error or returned no sound inference.
        """
        before = latent[:, 0].tolist()
        vectors = self.vectors[actions]  # [B, parts]
        paths = [
            (*self.states[place][2], self.interventions[action])
            for place, action in zip(before, actions.tolist())
        ]
        self._spend(len(before))
        latents = np.concatenate([self.states[place][0] for place in before])  # [B, …]
        rewards, values, places = self._infer(
            lambda: self._model.recurrent_inference(latents, vectors), paths
        )
        return rewards, values, self.policy(places), np.array(places)[:, None]

    def policy(self, places: Sequence[int]) -> Floats:
        """Return logits over the candidates, [B, A], of the states with some indices, [B]."""
        logits: Floats = np.stack([self.states[place][1] for place in places]) @ self._parts
        allowed = np.stack([self.allowed(self.states[place][2]) for place in places])  # [B, A]
        least = np.minimum.reduce(logits, axis=1, keepdims=True) - FORBIDDEN
        return np.where(allowed, logits, least)

    def allowed(self, path: Interventions) -> Bools:
        """Return the candidates that the masks allow after some interventions, bool [A]."""
        masks = self._problem.masks
        if path and self._problem.masks_after is not None:
            masks = self._problem.masks_after(path)
        allowed: Bools = np.logical_and.reduce(
            [mask[values] for mask, values in zip(masks, self.vectors.T)]
        )
        return allowed

    def path(self, tree: Tree, node: int) -> Interventions:
        """Return the interventions that lead to a node of a searched tree."""
        return self.states[int(tree.latent[0, node, 0])][2]

    def _infer(
        self, infer: Callable[[], Inference], paths: Sequence[Interventions]
    ) -> tuple[Floats, Floats, list[int]]:
        """Call the model and keep the new states; return rewards [B], values [B] and indices."""
        first = len(self.states)
        batch = len(paths)
        try:
            found = infer()
            shapes = [np.shape(part) for part in (found.reward, found.value, found.logits)]
            expected = [(batch,), (batch,), (batch, len(self._parts))]
            if shapes != expected or len(found.latent) != batch:
                raise UserError(
                    f"expected reward, value and logits of the shapes {expected} and {batch} "
                    f"latents, found {shapes} and {len(found.latent)} latents"
                )
            logits = np.asarray(found.logits, dtype=np.float64)
            self.states += [
                (found.latent[row : row + 1], logits[row], path) for row, path in enumerate(paths)
            ]
            places = list(range(first, first + batch))
            return np.asarray(found.reward), np.asarray(found.value), places
        except Exception as error:
            raise ModelFailed(describe_error(error)) from error
