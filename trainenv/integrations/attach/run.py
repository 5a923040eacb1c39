"""`InPlaceRun`: a run that a framework trains, whose branches take turns in the live tensors.

A fork is a run of its own, but there is one set of live parts (`Stage`). Whichever run is used
next takes its place there; the others are parked as snapshots in host memory. So any number of
branches needs the memory of one model on the device.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from trainenv.config.schema import TrainingConfig
from trainenv.integrations.attach.rates import at
from trainenv.integrations.attach.stage import Stage, Unfinished, parts_in
from trainenv.models.spec import spec_of
from trainenv.monitor.hypergradient import due, hypergradient
from trainenv.monitor.monitor import Monitor
from trainenv.monitor.probe import Probe
from trainenv.tools.packing import pack, unpack
from trainenv.training import optimizers, schedules, snapshots
from trainenv.training.compatibility import check_snapshot
from trainenv.training.micro_batches import pass_size, token_count
from trainenv.training.parameter_names import unwrapped
from trainenv.training.steering import Steered, clipping_row
from trainenv.types import Batches, Purpose, Snapshot, Telemetry, UserError, as_whole

if TYPE_CHECKING:
    from typing import Self


class InPlaceRun(Steered):
    """A training run whose steps a framework takes. See `trainenv.types.Run`.

    Args:
        stage: Live parts.
        config: Training configuration.
        parameters: Trained parameters.
    """

    retrains: ClassVar[bool] = True

    def __init__(self, stage: Stage, config: TrainingConfig, parameters: Sequence[Tensor]) -> None:
        trained = stage.trained
        self._stage = stage
        self.model = trained.model
        self.optimizer = trained.optimizers[0]
        self.device = stage.device
        self.parked: Snapshot | None = None  # its parts, while another run is on the stage
        self.unfinished: Unfinished | None = None
        self.rate_factor = 1.0  # on the scheduled rate, in the newest step
        self.deciding = False  # while a callback acts; see `advance`
        self._parameters = parameters
        steps = None if trained.data is None else trained.data.epoch_steps
        stage.current = self
        self._begin(config, epoch_steps=steps, purpose="main", ledger=None)
        self._per_token = float(spec_of(self.model).flops_per_token(unwrapped(self.model)))
        self._monitor = self._new_monitor()
        self._clipper = self._new_clipper(config.clip.in_force)

    def _new_monitor(self) -> Monitor:
        held_out = self._stage.trained.held_out
        probe = None
        monitor = self.config.monitor
        self._probe_batch = held_out.probe
        wanted = monitor.enabled and monitor.probe_every and self._probe_batch is not None
        if wanted and held_out.loss is not None:
            probe = Probe(unwrapped(self.model), self._probe_batch, held_out.loss)
        return Monitor(monitor, steps=self.config.steps, probe=probe)

    # ── training ──────────────────────────────────────────────────────────────────────────────────

    def advance(self, steps: int) -> list[Telemetry]:
        """Let the framework train for `steps` optimizer steps; return the telemetry of each."""
        steps = as_whole(steps, "steps", least=0)
        self._stage.enter(self)
        measured: list[Telemetry] = []
        block = self.config.monitor.block
        for count in range(1, steps + 1):
            if self.unfinished is None:
                self._stage.train_one()
            self.take_in()
            if count % block == 0 or count == steps:
                measured.extend(self._read_block())
        self.deciding = True  # until whoever asked has acted on them
        return measured

    # The framework calls these while it trains a step of the run on the stage.

    def begin_step(self) -> int:
        """Begin a step, and return the data index of its batch."""
        index = self._order.index(self.step)
        self.unfinished = Unfinished(index=index, progress=self.horizon.progress(self.step))
        return index

    def count(self, batch: Any) -> None:
        """Count the tokens of a micro-batch, before it is trained on."""
        self._now.tokens += token_count(batch)
        self._now.size += pass_size(batch)

    def add_loss(self, loss: Tensor) -> None:
        """Add the share of a micro-batch in the loss of the step.

        Args:
            loss: Loss of the micro-batch, divided by the micro-batches of a step; a scalar.
        """
        measured = self._now.measured
        measured["loss"] = measured.get("loss", 0.0) + loss.detach().float().reshape(())

    def clip_gradients(self) -> None:
        """Clip the gradients of the step by the policy in force, and measure them."""
        step = self._now
        with_gradient = [p for p in self._parameters if p.grad is not None]
        if not with_gradient:
            return
        report = self._clipper(with_gradient, optimizer=self.optimizer)
        step.measured |= clipping_row(report)
        warmup = self.config.schedule.warmup
        if self._stage.trained.data is None:
            warmup = 0  # nothing is decided in the warm-up of a run that is only watched
        if due(self.step, self.config.monitor, warmup):
            cosine, ratio = hypergradient(with_gradient, self.optimizer)
            step.measured["hypergradient_cosine"] = cosine
            step.measured["update_ratio"] = ratio
        if report.momentum_reset:
            self._reset_momentum()

    def before_update(self) -> None:
        """Put the learning rate and the weight decay of the step in force."""
        rates = self._stage.rates
        scheduled = rates.scheduled
        factor = self._factor(self.step, scheduled)
        self.rate_factor = factor
        self._now.known = {
            "lr": scheduled * factor,
            "weight_decay": rates.weight_decay * self.weight_decay_scale,
        }
        rates.put(lr=factor, weight_decay=self.weight_decay_scale)

    def after_update(self) -> None:
        """Give the schedule its own values back: the step is complete."""
        self._stage.rates.give_back()
        self._now.complete = True

    @property
    def _now(self) -> Unfinished:
        assert self.unfinished is not None, "a step of the framework that nobody asked for"
        return self.unfinished

    def take_in(self) -> None:
        """Take in the step that the framework has trained."""
        step = self._now
        self.unfinished = None
        probes = self._monitor.probes(self.step)
        self.step += 1
        flops = step.size * self._per_token
        self._line_flops += flops
        self.ledger.charge(self.purpose, flops)
        measured = dict(step.measured)
        if probes:
            with torch.no_grad(), optimizers.evaluating(self.optimizer):
                measured |= self._monitor.measure()
            self.ledger.charge("evaluate", self._flops_of([self._probe_batch]) / 3)
        nan = torch.full((), float("nan"), device=self.device)
        for name in ("loss", "grad_norm", "grad_norm_clipped", "clip_threshold", "clip_score"):
            measured.setdefault(name, nan)
        known = self._host_row(
            data_index=step.index,
            lr=step.known.get("lr", float("nan")),
            weight_decay=step.known.get("weight_decay", float("nan")),
            progress=step.progress,
        )
        self._monitor.append(known | {"tokens": step.tokens}, measured)

    # ── rates ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def base_lr(self) -> float:
        """See `Run`: the peak of the schedule."""
        return max(self._stage.trained.lrs, default=0.0)

    def lrs_ahead(self) -> list[float]:
        """See `Run`."""
        end = max(self.horizon.end, self.step + 1)
        return [
            self._planned(step) * self.lr_scale * self._warmth(step)
            for step in range(self.step, end)
        ]

    def _planned(self, step: int) -> float:
        """Return the scheduled rate of a step; the schedule is compressed if the budget shrank."""
        return at(self._stage.trained.lrs, self._place_in_schedule(step))

    def _place_in_schedule(self, step: int) -> float:
        if self.horizon.end == self.config.steps and not self.horizon.done:
            return step
        since = min(self.config.schedule.warmup, self.config.steps)
        if step <= since:
            return step
        return since + self.horizon.progress(step) * (self.config.steps - since)

    def _factor(self, step: int, scheduled: float) -> float:
        factor = self.lr_scale * self._warmth(step)
        place = self._place_in_schedule(step)
        if place != step and scheduled > 0:
            factor *= at(self._stage.trained.lrs, place) / scheduled
        return factor

    def _warmth(self, step: int) -> float:
        return schedules.warmth(step, self._reset_at, self.config.reset_warmup)

    def _reset_momentum(self) -> None:
        self._stage.enter(self)
        for optimizer in self._stage.trained.optimizers:
            optimizers.reset_moments(optimizer)
        self._reset_at = self.step

    # ── budget and data ───────────────────────────────────────────────────────────────────────────

    def spend(self, steps: int) -> None:
        """See `Run`. Nothing is taken off a budget that branches come on top of."""
        if not self._stage.trained.extra:
            super().spend(steps)

    def end_at(self, step: int) -> None:
        """See `Run`. A budget that branches come on top of keeps its end."""
        if not self._stage.trained.extra:
            super().end_at(step)

    def end_here(self) -> None:
        """End the budget after the step under way: the framework has stopped."""
        end = self.step + 1
        if end < self.horizon.end:
            self.horizon = schedules.Horizon(end=end, since=end, done=1.0)

    @property
    def batches(self) -> Batches:
        """See `Run`."""
        if self._stage.trained.data is None:
            return lambda index: None
        return self._stage.trained.data

    @property
    def flops_ahead(self) -> float:
        """See `Run`."""
        return self.flops_per_step or self._stage.trained.batch_size * self._per_token

    @property
    def flops_per_evaluation(self) -> float:
        """See `Run`."""
        return self._flops_of(self.held_out) / 3

    def flops_of_probes(self, steps: int) -> float:
        """See `Run`."""
        if self._monitor.probe is None:
            return 0.0
        probes = -(-steps // self.config.monitor.probe_every)
        return probes * self._flops_of([self._probe_batch]) / 3

    def _flops_of(self, batches: Sequence[Any]) -> float:
        return sum(pass_size(batch) for batch in batches) * self._per_token

    @property
    def held_out(self) -> Sequence[Any]:
        """Held-out batches that `evaluate` averages over."""
        return self._stage.trained.held_out.batches

    @property
    def state_bytes(self) -> int:
        """Bytes of a snapshot: the trained parameters and two moments of each."""
        return 3 * sum(p.numel() * p.element_size() for p in self._parameters)

    # ── evaluation ────────────────────────────────────────────────────────────────────────────────

    def evaluate(self) -> float:
        """See `Run`. NaN without held-out data."""
        self._stage.enter(self)
        loss = self._stage.trained.held_out.evaluate()
        self.ledger.charge("evaluate", self.flops_per_evaluation)
        return loss

    def evaluate_fully(self) -> float:
        """See `Run`."""
        return self.evaluate()

    @property
    def has_test_set(self) -> bool:
        """See `Run`: what the framework tests is its own."""
        return False

    def test_loss(self) -> float:
        """See `Run`."""
        raise UserError("an attached run has no test set; test the model with its own trainer")

    # ── the run as a value ────────────────────────────────────────────────────────────────────────

    def snapshot(self, extra: Mapping[str, Any] | None = None) -> Snapshot:
        """See `Run`."""
        parts = self._stage.state() if self.parked is None else parts_in(self.parked)
        ledger = self.ledger.as_dict()
        further = dict(extra or {})
        return self._stage.capture(
            self.step, parts, run=self.light_state(), ledger=ledger, **further
        )

    def light_state(self) -> dict[str, Any]:
        """Return the state of the run without the live parts, as tensors and JSON."""
        unfinished = None
        if self.unfinished is not None:
            unfinished = pack(vars(self.unfinished))
        return {
            "steering": self._steering_state(),
            "statistics": {"epoch": 0, **self._monitor.statistics.state_dict()},
            "unfinished": unfinished,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """See `Run`."""
        check_snapshot(snapshot)
        state = snapshots.expand(snapshot)
        if "parts" not in state.get("run", {}):
            raise UserError(
                "expected the snapshot of an attached run, found one of another kind; take one "
                "that this run has returned"
            )
        self.take_on(snapshot.step, state["run"])
        if self._stage.current is self:
            self._stage.load(state["run"]["parts"])
        else:
            self.parked = snapshot
        self._stage.recent.add(snapshot)

    def take_on(self, step: int, state: Mapping[str, Any]) -> None:
        """Take on what `light_state` returned after `step` steps."""
        whole = {**state["steering"], "statistics": state["statistics"]}
        self._take_on_steering(step, whole, lambda: None)
        self.unfinished = None
        if state["unfinished"] is not None:
            self.unfinished = Unfinished(**unpack(state["unfinished"]))

    def start_at(self, step: int) -> None:
        """Count the steps that the framework has taken before it was attached."""
        self.step = step
        self._line_flops = step * self.flops_ahead

    def rewind(self, snapshot: Snapshot) -> None:
        """See `Run`. Whoever keeps records of the steps since learns that they are gone.

        Raises:
            UserError: The framework has trained its last step; or see `Run`.
        """
        if self._stage.sealed:
            raise UserError(
                "the framework has trained its last step, so that the run cannot go back"
            )
        super().rewind(snapshot)
        self._stage.on_rewind(self.step)

    def fork(self, purpose: Purpose = "verify") -> Self:
        """See `Run`. The fork takes turns with this run in the live tensors."""
        snapshot = self.snapshot()
        fork = copy.copy(self)
        fork.purpose = purpose
        fork._monitor = fork._new_monitor()
        fork.restore(snapshot)
        return fork

    def check_forkable(self) -> None:
        """See `Run`: it always can be, in place."""

    def fingerprint(self) -> str:
        """See `Run`."""
        return snapshots.fingerprint(self.snapshot(), leave_out=("ledger",))
