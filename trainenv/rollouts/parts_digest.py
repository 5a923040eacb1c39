"""Whether two runs are made of the same parts, all that their futures depend on to the bit and that no snapshot holds."""

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

_LOOKS = 8  # data indices that are compared, over the budget


def parts_digest(run: TrainingRun) -> dict[str, str]:
    """Each part of a run in a word: equal for runs whose parts are alike, whatever their states are."""
    steps = range(run.config.steps + 1)
    stress = run._rates.stress
    lost = run._moments_lost
    indices = range(0, run.config.steps, max(1, run.config.steps // _LOOKS))
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
    } | {name: repr(value) for name, value in run._numerics().items()}


def _kind(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _settings(model: Any) -> Any:
    config: Any = getattr(model, "config", None)
    return sorted(config.to_dict().items(), key=str) if hasattr(config, "to_dict") else repr(config)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """Settings of an optimizer group that stay as they were."""
    kept = {
        name: value for name, value in group.items() if name not in ("params", "lr", "weight_decay")
    }
    return {
        name: json.dumps(value, default=repr) for name, value in kept.items()
    }  # a tuple is a list once it was restored


def _micro(run: TrainingRun, index: int) -> Any:
    bare = isinstance(run.objective, NextToken)
    with run._rng.active(keep=False):  # the batches may draw from it, or seed it
        return as_batch(run._batches(index), index, run.config.accumulation, bare=bare).micro


def _tensors(value: Any) -> str:
    try:
        return snapshots.fingerprint(snapshots.view(0, {"value": value}))
    except UserError:  # no tensors
        return repr(value)


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
