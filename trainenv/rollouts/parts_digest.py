"""Digests of the parts of a run that no snapshot holds.

Two runs with equal digests and equal snapshots have futures that are equal to the bit.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from trainenv.objectives import NextToken
from trainenv.training import snapshots
from trainenv.training.micro_batches import as_batch
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun

_SAMPLED_INDICES = 8  # data indices whose batches are compared, evenly over the budget


def parts_digest(run: TrainingRun) -> dict[str, str]:
    """Return a digest of each part of a run, which does not depend on the state of the run."""
    steps = range(run.config.steps + 1)
    stress = run._rates.stress
    lost = run._moments_lost
    indices = range(0, run.config.steps, max(1, run.config.steps // _SAMPLED_INDICES))
    return {
        "class": _kind(run),
        "model": _hash(_kind(run.model), str(run.model), _settings(run.model)),
        "optimizer": _hash(
            _kind(run.optimizer),
            run._base,
            [sorted(_plain(g).items()) for g in run.optimizer.param_groups],
        ),
        "objective": f"{_kind(run.objective)} {run.objective!r}",
        "schedule": _hash([run._rates.schedule(step, step / run.config.steps) for step in steps]),
        "stress": _hash(
            stress and [stress(step) for step in steps], lost and [lost(step) for step in steps]
        ),
        "data": _hash(
            _kind(run._batches), *(_tensors(list(_micro(run, index))) for index in indices)
        ),
        "validation set": _tensors(list(run._validation)),
        "probe": _tensors(run._probe_batch),
    } | {name: repr(value) for name, value in run.numerics().items()}


def _kind(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _settings(model: Any) -> Any:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        return sorted(config.to_dict().items(), key=str)
    return repr(config)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an optimizer group that training does not change.

    As JSON, since a tuple becomes a list when it is restored.
    """
    kept = group.keys() - {"params", "lr", "weight_decay"}
    return {name: json.dumps(group[name], default=repr) for name in kept}


def _micro(run: TrainingRun, index: int) -> Any:
    bare = isinstance(run.objective, NextToken)
    with run._rng.active(keep=False):  # batches may draw random numbers, or set the seed
        return as_batch(run._batches(index), index, run.config.accumulation, bare=bare).micro


def _tensors(value: Any) -> str:
    try:
        return snapshots.fingerprint(snapshots.view(0, {"value": value}))
    except UserError:  # no tensors
        return repr(value)


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
