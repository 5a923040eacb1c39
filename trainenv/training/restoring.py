"""A run takes on the state of a snapshot, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainenv.monitor.last_values import Statistics
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.training.schedules import Horizon
from trainenv.types import Intervention, UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun


def take_on(run: TrainingRun, step: int, state: Mapping[str, Any]) -> None:
    """Take on an expanded state but for the model, the optimizer and the objective. Keeps none of its tensors.

    Raises:
        UserError: a part of the run cannot take its part of the state; the run is as it was.
    """
    try:
        index = UncertaintyIndex(run.config.monitor.uncertainty, steps=run.config.steps)
        clipper = run._new_clipper(state["clip"]["name"])
        index.load_state_dict(state["monitor"])
        clipper.load_state_dict(state["clip"]["state"])
        applied = tuple((at, Intervention(**values)) for at, values in state["applied"])
        horizon, order = Horizon(**state["horizon"]), run._order.load_state_dict(state["order"])
        statistics = Statistics()
        statistics.load_state_dict(state["statistics"])
        run._rng.load_state_dict(state["rng"])  # the last that can be refused, and whole or not at all
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the snapshot holds what no run of this version would ({error!r:.200}); take an earlier one") from None
    run._drop_unfinished()
    run.step, run.index, run._clipper, run._statistics = step, index, clipper, statistics
    run.lr_scale, run.weight_decay_scale = state["lr_scale"], state["weight_decay_scale"]
    run.applied, run.flagged, run.horizon, run._order = applied, tuple(state["flagged"]), horizon, order
    run._reset_at, run._line_flops = state["reset_at"], state["line_flops"]
    if run._scaler.is_enabled():
        run._scaler.load_state_dict(state["scaler"])
