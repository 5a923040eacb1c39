"""`Steered`: the part of a run that interventions change, whoever trains it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from trainenv import clipping
from trainenv.config.schema import TrainingConfig
from trainenv.interventions import bounded
from trainenv.models.spec import spec_of
from trainenv.monitor.monitor import Monitor
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.training import schedules
from trainenv.training.compatibility import check_snapshot
from trainenv.training.data_order import DataOrder, flagged_with
from trainenv.training.ledger import Ledger
from trainenv.training.parameter_names import unwrapped
from trainenv.types import (
    PURPOSES,
    ClipReport,
    Emphasis,
    Intervention,
    Purpose,
    Snapshot,
    Telemetry,
    UserError,
    as_whole,
)

_LOST_STEPS = 50  # steps in a row with a non-finite loss that make a divergence, at least
_LOST_SHARE = 20  # 1/20 of the budget, if that is more than 50 steps
_ENDLESS_EPOCH_BLOCKS = 64  # blocks that a reorder shuffles if the data has no epochs


class Steered(ABC):
    """Interventions in force, data order, budget and monitor of a run.

    Attributes:
        retrains: True if others follow its steps, so that a branch is trained again to become the
            run.
        model: Model that is trained.
        config: Training configuration.
        ledger: Ledger of FLOPs.
        purpose: Purpose that the FLOPs of its steps are charged to.
        step: Number of completed optimizer steps.
        lr_scale: Factor on the scheduled learning rate.
        weight_decay_scale: Factor on the configured weight decay.
        flagged: Data indices that the monitor flagged as harmful.
        applied: Interventions so far, each with the step it was applied at.
        horizon: Budget.
    """

    retrains: ClassVar[bool] = False
    model: nn.Module
    _parameters: Sequence[Tensor]

    def _begin(
        self, config: TrainingConfig, *, epoch_steps: Any, purpose: Purpose, ledger: Ledger | None
    ) -> None:
        """Set the state of a run before its first step.

        Args:
            config: Training configuration.
            epoch_steps: Steps of an epoch; None or 0 if the data have no epochs.
            purpose: Purpose that the FLOPs of its steps are charged to.
            ledger: Ledger of FLOPs; None for a new one.

        Raises:
            UserError: The purpose is unknown, or the steps of an epoch are no whole number.
        """
        if purpose not in PURPOSES:
            raise UserError(f"purpose must be one of {', '.join(PURPOSES)}, found {purpose!r}")
        self.config = config
        self.ledger = Ledger() if ledger is None else ledger
        self.purpose: Purpose = purpose
        self.step = 0
        self.lr_scale = self.weight_decay_scale = 1.0
        self.flagged: tuple[int, ...] = ()
        self.applied: tuple[tuple[int, Intervention], ...] = ()
        self.horizon = schedules.Horizon(
            end=config.steps, since=min(config.schedule.warmup, config.steps)
        )
        self._reset_at: int | None = None
        self._line_flops = 0.0
        epochs = epoch_steps or _ENDLESS_EPOCH_BLOCKS * config.block_steps
        epoch = as_whole(epochs, "epoch_steps of batches", least=1)
        self._order = DataOrder(seed=config.seed, epoch_steps=epoch, block_steps=config.block_steps)
        self._monitor: Monitor
        self._clipper: clipping.Clipper

    @abstractmethod
    def restore(self, snapshot: Snapshot) -> None:
        """Take on the state of a snapshot."""

    @abstractmethod
    def _reset_momentum(self) -> None:
        """Reset the moments of the optimizer and warm the learning rate up again."""

    @property
    @abstractmethod
    def base_lr(self) -> float:
        """Base learning rate of the first parameter group, before schedule and interventions."""

    def __repr__(self) -> str:
        loss = self._monitor.statistics.loss
        known = "no loss yet" if loss is None else f"loss {loss:.4g}"
        return (
            f"{type(self).__name__}(step {self.step} of {self.horizon.end}, {known}, "
            f"LR × {self.lr_scale:.3g}, {self.clip})"
        )

    # ── state ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def done(self) -> bool:
        """True once the budget is spent."""
        return self.step >= self.horizon.end

    @property
    def diverged(self) -> bool:
        """True if further training is useless.

        A single non-finite loss is no divergence: a batch without labels has one and leaves the
        weights unchanged. Either the weights are non-finite, or the losses of many steps in a row
        are, and no probe of clean data among them is finite.
        """
        count = self._monitor.statistics.non_finite
        if not count:
            return False
        long = max(_LOST_STEPS, self.config.steps // _LOST_SHARE)
        return count >= long or not all(bool(p.isfinite().all()) for p in self._parameters)

    @property
    def index(self) -> UncertaintyIndex:
        """Uncertainty index of the run."""
        return self._monitor.index

    @property
    def clip(self) -> str:
        """Name of the clip policy in force."""
        return self._clipper.name

    @property
    def emphases(self) -> tuple[str, ...]:
        """Changes of the objective's emphasis that are possible now; none for most objectives."""
        return ()

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that the model knows; None without an embedding."""
        model = unwrapped(self.model)
        return spec_of(model).shape(model).vocabulary

    @property
    def uniform_loss(self) -> float:
        """Loss of a uniform guess over the vocabulary, in nats: ln V. Above 0."""
        return math.log(max(2, self.vocabulary or 256))

    @property
    def flops_per_step(self) -> float:
        """Mean FLOPs of the steps so far; 0 before the first."""
        if self.step:
            return self._line_flops / self.step
        return 0.0

    @property
    def flagged_ahead(self) -> tuple[int, ...]:
        """Flagged data indices that are still to come, after a rewind."""
        return self._order.ahead(self.step, self.flagged)

    def upcoming(self, steps: int) -> tuple[int, ...]:
        """Return the data indices of the next `steps` steps."""
        return tuple(self._order.index(self.step + k) for k in range(as_whole(steps, "steps")))

    # ── steering ──────────────────────────────────────────────────────────────────────────────────

    def apply(self, intervention: Intervention) -> None:
        """Put an intervention in force from the next step on, whole or not at all.

        Raises:
            UserError: A multiplier would leave its bounds.
        """
        if not isinstance(intervention, Intervention):
            raise UserError(
                f"expected an Intervention, found {type(intervention).__name__}; "
                "give Intervention(lr_scale=…)"
            )
        bounds = self.config.interventions
        lr_scale = bounded("lr_scale", self.lr_scale * intervention.lr_scale, bounds.lr_bounds)
        decay = self.weight_decay_scale * intervention.weight_decay_scale
        decay = bounded("weight_decay_scale", decay, bounds.weight_decay_bounds)
        clipper = self._clipper
        if intervention.clip is not None and intervention.clip != self.clip:
            clipper = self._new_clipper(intervention.clip)
        if intervention.emphasis is not None:
            self._adjust_objective(intervention.emphasis)
        self.lr_scale = lr_scale
        self.weight_decay_scale = decay
        self._clipper = clipper
        if intervention.momentum_reset:
            self._reset_momentum()
        if intervention.data_reorder:
            self._order = self._order.reorder(self.step)
        if intervention.skip_batch:
            self._order = self._order.skip(self.flagged_ahead)
        if not intervention.does_nothing:
            self.applied = (*self.applied, (self.step, intervention))

    def flag(self, data_indices: Iterable[int]) -> None:
        """Mark data indices as harmful, to be skipped by an intervention; a rewind keeps them."""
        self.flagged = flagged_with(self.flagged, data_indices)

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this run; flagged data and spent compute are kept.

        The steps since are charged to *rewound*, and the budget shrinks by as many.

        Raises:
            UserError: The snapshot is of a later step.
        """
        check_snapshot(snapshot)
        flagged = self.flagged
        end = self.horizon.end
        wasted = self.step - snapshot.step
        line = self._line_flops
        if wasted < 0:
            raise UserError(
                f"a rewind goes back: expected a snapshot of step {self.step} or before, "
                f"found step {snapshot.step}"
            )
        self.restore(snapshot)
        self.flag(flagged)
        self.ledger.move(self.purpose, "rewound", line - self._line_flops)
        self.end_at(end - wasted)

    def spend(self, steps: int) -> None:
        """Take the compute of `steps` steps off the budget: the run ends annealed, but earlier."""
        self.horizon = self.horizon.spend(self.step, as_whole(steps, "steps", least=0))

    def end_at(self, step: int) -> None:
        """Set the last step of the budget; an earlier one than now counts as now."""
        self.horizon = self.horizon.spend(
            self.step, self.horizon.end - as_whole(step, "the last step")
        )

    def _adjust_objective(self, emphasis: Emphasis) -> None:
        """Change the emphasis of the objective.

        Raises:
            UserError: The objective has none.
        """
        raise UserError(
            f"an emphasis ({emphasis!r}) needs an objective that can be steered, MTP for instance; "
            "leave emphasis out"
        )

    def _new_clipper(self, name: str) -> clipping.Clipper:
        return clipping.make(name, **self.config.clip.options_of(name))

    def _read_block(self) -> list[Telemetry]:
        """Return the telemetry since the last block; flag data read while the index was high."""
        block = self._monitor.read()
        if self.config.monitor.enabled:
            high = (t.data_index for t in block if t.reading.index >= t.reading.threshold)
            self.flag(high)
        return block

    def _host_row(
        self,
        *,
        data_index: int,
        lr: float,
        weight_decay: float,
        progress: float,
        stressors: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Return the telemetry of the step that has just ended, as far as the host knows it.

        Args:
            data_index: Data index of its batch.
            lr: Learning rate of the first parameter group.
            weight_decay: Weight decay of the first parameter group.
            progress: Share of the budget's annealing that was done before it.
            stressors: Names of planted faults.
        """
        since_reset = -1
        if self._reset_at is not None:
            since_reset = self.step - self._reset_at
        return {
            "step": self.step,
            "data_index": data_index,
            "clip": self.clip,
            "lr": lr,
            "lr_scale": self.lr_scale,
            "weight_decay": weight_decay,
            "weight_decay_scale": self.weight_decay_scale,
            "steps_since_reset": since_reset,
            "progress": progress,
            "stressors": stressors,
        }

    # ── the state as a value ──────────────────────────────────────────────────────────────────────

    def _steering_state(self) -> dict[str, Any]:
        """Return all of it but the ledger and the statistics."""
        return {
            "order": self._order.state_dict(),
            "clip": {"name": self.clip, "state": self._clipper.state_dict()},
            "monitor": self.index.state_dict(),
            "horizon": self.horizon.state_dict(),
            "lr_scale": self.lr_scale,
            "weight_decay_scale": self.weight_decay_scale,
            "seed": self.config.seed,
            "applied": [[step, intervention.as_dict()] for step, intervention in self.applied],
            "flagged": list(self.flagged),
            "reset_at": self._reset_at,
            "line_flops": self._line_flops,
        }

    def _take_on_steering(
        self, step: int, state: Mapping[str, Any], also: Callable[[], None]
    ) -> None:
        """Take on what `_steering_state` returned, and the statistics, whole or not at all.

        Args:
            step: Number of completed steps.
            state: Expanded state.
            also: Function that loads a further part; it is called last, and may refuse.

        Raises:
            UserError: A part of the run cannot take its part of the state; the run is unchanged.
        """
        monitor = Monitor(
            self.config.monitor,
            steps=self.config.steps,
            probe=self._monitor.probe,
            agreed=self._monitor.agreed,
        )
        try:
            clipper = self._new_clipper(state["clip"]["name"])
            monitor.index.load_state_dict(state["monitor"])
            monitor.statistics.load_state_dict(state["statistics"])
            clipper.load_state_dict(state["clip"]["state"])
            applied = tuple((at, Intervention(**values)) for at, values in state["applied"])
            horizon = schedules.Horizon(**state["horizon"])
            order = self._order.load_state_dict(state["order"])
            also()
        except UserError:
            raise
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,
            OverflowError,
        ) as error:
            raise UserError(
                f"the snapshot holds what no run of this version would ({error!r:.200}); "
                "take an earlier one"
            ) from None
        self._drop_unfinished()
        self._monitor = monitor
        self._clipper = clipper
        self._order = order
        self.step = step
        self.lr_scale = state["lr_scale"]
        self.weight_decay_scale = state["weight_decay_scale"]
        self.applied = applied
        self.flagged = tuple(state["flagged"])
        self.horizon = horizon
        self._reset_at = state["reset_at"]
        self._line_flops = state["line_flops"]

    def _drop_unfinished(self) -> None:
        """Drop the traces of an unfinished step."""
        self._monitor.forget_unread()


def clipping_row(report: ClipReport) -> dict[str, Tensor]:
    """Return the telemetry of a clipped gradient, still on its device."""
    return {
        "grad_norm": report.norm,
        "grad_norm_clipped": report.clipped_norm,
        "clip_threshold": report.threshold,
        "clip_score": report.score,
    }
