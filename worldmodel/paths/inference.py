"""The path model as the model of a tree search: decision by decision to the end of the run.

A state is a run now and a beginning of a path. Its value is how much lower ln loss is at the end of
the run if the rate is held from there on than if it is held from now on. Dynamics in the space of
paths are exact, so that nothing is rolled out in a latent space. Rewards are 0: where returns are
not discounted, only the value of the last state matters (Schrittwieser et al. 2020, MuZero, with
this value in place of its own).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.types import Inference, RunHistory
from trainenv.worldmodel.paths.inputs import Floats, path_features, state_inputs
from trainenv.worldmodel.paths.model import PathValueModel, extrapolation, path_state

_FACTS = 5  # numbers at the end of a latent: extrapolation, depth, now, peak, usual


@dataclass(frozen=True, kw_only=True)
class PathInference:
    """The two inferences of a `trainenv.types.WorldModel`, by a path model.

    Args:
        paths: Path model.
        actions: Action space of the action vectors; only its learning rates have an effect.
        caution: Weight of the ensemble's disagreement, which lowers values.
    """

    paths: PathValueModel
    actions: InterventionConfig = field(default_factory=InterventionConfig)
    caution: float = 1.0

    @torch.inference_mode()
    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        """Return the states of histories, with latents [B, …]; all have as many decisions left."""
        shape = self.paths.ensemble.shape
        rows = []
        for history in histories:
            left = max(1, -(-len(history.lrs_ahead) // history.decision_steps))
            state = path_state(history, left)
            inputs = torch.from_numpy(state_inputs(state.features[None]).astype(np.float32))
            begun = self.paths.ensemble.of_state(inputs, self.paths.blind).flatten().numpy()
            unknown = np.zeros(shape.members + left)
            facts = [extrapolation(state), 0.0, state.now, state.peak, state.usual]
            rows.append(np.concatenate([begun, state.schedule, unknown, facts]))
        latent = np.array(rows)
        hold = self._ends(latent)  # [M, B]
        latent[:, -_FACTS - shape.members : -_FACTS] = hold.T
        return self._inference(latent)

    @torch.inference_mode()
    def recurrent_inference(
        self, latent: NDArray[np.float32], actions: NDArray[np.integer[Any]], /
    ) -> Inference:
        """Return the states after one more decision on each path."""
        codec = ActionCodec(self.actions)
        rows = latent.astype(np.float64)
        left = self._decisions(rows)
        paths = self._paths(rows)
        for row, path, action in zip(rows, paths, actions):
            depth = int(row[1 - _FACTS])
            path[min(depth, left - 1) :] += math.log(codec.decode(action).lr_scale)
            row[1 - _FACTS] = depth + 1
        return self._inference(rows)

    def _inference(self, rows: Floats) -> Inference:
        members = self.paths.ensemble.shape.members
        change = self._ends(rows) - rows[:, -_FACTS - members : -_FACTS].T  # [M, B]
        unknown = rows[:, -_FACTS] * np.any(self._paths(rows) != 0, axis=1)
        value = -(change.mean(axis=0) + self.caution * (change.std(axis=0) + unknown))
        sizes = sum(ActionCodec(self.actions).sizes)
        return Inference(
            latent=rows.astype(np.float32),
            reward=np.zeros(len(rows), dtype=np.float32),
            value=value.astype(np.float32),
            logits=np.zeros((len(rows), sizes), dtype=np.float32),
        )

    def _ends(self, rows: Floats) -> Floats:
        """Return the expected ln final loss less ln loss now, of each member [M, B]."""
        shape = self.paths.ensemble.shape
        begun = rows[:, : shape.members * shape.width].reshape(-1, shape.members, shape.width)
        left = self._decisions(rows)
        schedule = rows[:, shape.members * shape.width :][:, :left]
        now, peak, usual = rows[:, 2 - _FACTS :].T
        inputs = path_features(schedule, self._paths(rows), now, peak, usual)
        found = self.paths.ensemble.of_paths(
            torch.from_numpy(begun.transpose(1, 0, 2).astype(np.float32)),
            torch.from_numpy(inputs.astype(np.float32)),
            self.paths.blind,
        )
        ends: Floats = found[:, :, 0].double().numpy()
        return ends

    def _paths(self, rows: Floats) -> Floats:
        """Return the paths [B, L] of latents, as a view."""
        members = self.paths.ensemble.shape.members
        left = self._decisions(rows)
        return rows[:, -_FACTS - members - left : -_FACTS - members]

    def _decisions(self, rows: Floats) -> int:
        shape = self.paths.ensemble.shape
        return int(rows.shape[1] - shape.members * (shape.width + 1) - _FACTS) // 2
