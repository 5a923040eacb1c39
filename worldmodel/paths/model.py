"""Value of paths of the learning rate to the end of the run, by an ensemble."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainenv.worldmodel.paths.inputs import PathState, path_features, state_inputs
from trainenv.worldmodel.paths.network import Ensemble

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PathValues:
    """Values of K paths against holding the rate, in nats of ln final loss; below 0 is better.

    Attributes:
        change: [K] mean over the members of the median change.
        disagreement: [K] standard deviation of the members' median changes.
        quantiles: [K, Q] quantiles of ln final loss less ln loss now, mean over the members.
    """

    change: Floats
    disagreement: Floats
    quantiles: Floats


class PathModel:
    """Ensemble that values paths. Deterministic, and unchanged by calls.

    Args:
        ensemble: Fitted ensemble.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble.eval().requires_grad_(False)

    @torch.inference_mode()
    def values(self, state: PathState, rest: Floats) -> PathValues:
        """Value paths from a state.

        Args:
            state: State of the run now.
            rest: [K, L] ln factors on the rate now, at each decision to come.
        """
        ahead = np.concatenate([np.zeros((1, rest.shape[1])), rest])
        paths = path_features(
            state.schedule[None],
            ahead,
            np.full(len(ahead), state.now),
            np.full(len(ahead), state.peak),
        )
        begun = self.ensemble.of_state(_float(state_inputs(state.features[None])))
        found = self.ensemble.of_paths(begun, _float(paths)).double().numpy()  # [M, K + 1, Q]
        median = found[:, :, found.shape[2] // 2]
        change = median[:, 1:] - median[:, :1]
        return PathValues(
            change=change.mean(0),
            disagreement=change.std(0),
            quantiles=found[:, 1:].mean(0),
        )

    @property
    def flops_per_path(self) -> float:
        """FLOPs of the value of one path."""
        shape = self.ensemble.shape
        weights = [w.shape[1] * w.shape[2] for w in self.ensemble.weights]
        weights[0] = (weights[0] // self.ensemble.weights[0].shape[1]) * 21
        return 2.0 * shape.members * sum(weights)


def _float(values: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
