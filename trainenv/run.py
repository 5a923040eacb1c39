"""A training run whose whole state is a value: advance it, steer it, snapshot it, restore it, fork it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv import clipping, devices, optimizers, schedules, snapshots
from trainenv.alike import check_alike, check_exact, check_snapshot
from trainenv.backward import backward
from trainenv.batching import as_batch, placed, token_count
from trainenv.config import RunConfig, TrainingConfig
from trainenv.copies import Copies
from trainenv.interventions import bounded
from trainenv.ledger import PURPOSES, Ledger, Purpose, flops_per_token
from trainenv.monitor.hypergradient import hypergradient
from trainenv.monitor.probe import Probe, evaluating
from trainenv.monitor.statistics import Statistics
from trainenv.monitor.telemetry import Recorder
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.objectives import NextToken
from trainenv.order import DataOrder
from trainenv.rng import RandomState
from trainenv.types import Batch, Batches, Intervention, Objective, Schedule, Snapshot, Telemetry, UserError

if TYPE_CHECKING:
    from typing import Self

_ENDLESS_EPOCH_BLOCKS = 64  # blocks that a reorder shuffles among where the data has no epochs
_WARM, _WARMUP_LOOKS = 3, 16  # warm-ups at the start, in each of which the gradient is compared with the last update so often
_NOT_THE_FUTURE = ("ledger", "numerics", "statistics")  # parts of a snapshot that its fingerprint leaves out


class TrainingRun:
    """Trains a model one optimizer step at a time, and is a value in between.

    `snapshot → restore → advance(n)` gives the same bits as `advance(n)`, two forks advanced alike stay equal, and a failed
    branch leaves its parent untouched. `fingerprint()` proves it.

    Args:
        model: any module; `objective(model, micro_batch)` is its loss.
        optimizer: over the model's parameters. The learning rates and weight decays that its groups hold now are the base
            values; those in force are base × schedule × intervention.
        batches: a pure function of the data index; see `trainenv.types.Batches`.
        config: how to train.
        objective: the loss; next-token prediction if left out.
        schedule: factor on the base learning rate; the configuration's if left out.
        validation: micro-batches that `evaluate` averages over.
        probe: a small clean micro-batch that the monitor looks at; without one there are no entropies.
        stress: factor on the learning rate by step, for planting instability.
        moments_lost: whether the optimizer's moments are gone before a step, likewise.
        purpose: what this run's steps are charged to.
        ledger: where FLOPs are charged; a new one if left out.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Batches,
        config: TrainingConfig,
        *,
        objective: Objective | None = None,
        schedule: Schedule | None = None,
        validation: Sequence[Any] = (),
        probe: Any = None,
        stress: Callable[[int], float] | None = None,
        moments_lost: Callable[[int], bool] | None = None,
        purpose: Purpose = "main",
        ledger: Ledger | None = None,
    ) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.objective: Objective = objective or NextToken()
        self.ledger = Ledger() if ledger is None else ledger
        self.purpose: Purpose = purpose
        self.step = 0
        self.folded = False  # by `trainenv.folded`: weights and moments are then rows of a matrix, and trained from there
        self.lr_scale = self.weight_decay_scale = 1.0
        self.flagged: tuple[int, ...] = ()
        self.applied: tuple[tuple[int, Intervention], ...] = ()
        self.index = UncertaintyIndex(config.monitor.uncertainty, steps=config.steps)
        self.horizon = schedules.Horizon(end=config.steps, since=min(config.schedule.warmup, config.steps))
        self._batches, self._validation, self._probe_batch = batches, tuple(validation), probe
        self._schedule = schedule or schedules.make(config.schedule)
        self._stress, self._moments_lost = stress, moments_lost
        self._reset_at: int | None = None
        self._line_flops = 0.0
        self._statistics, self._recent = Statistics(), snapshots.Recent()
        if purpose not in PURPOSES:
            raise UserError(f"purpose must be one of {', '.join(PURPOSES)}, found {purpose!r}")
        # Those that the optimizer updates, a loss's own among them: what is updated is clipped.
        self._parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if not self._parameters or not any(p.requires_grad for p in model.parameters()):
            raise UserError("model and optimizer must hold parameters that require gradients, found none; unfreeze some")
        self._base = optimizers.base_rates(optimizer)
        self.device = self._parameters[0].device
        self._rng = RandomState(config.seed, self.device)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._recorder = Recorder()
        watched = config.monitor.enabled and config.monitor.probe_every and probe is not None
        self._probe = Probe(model, placed(probe, self.device), self._loss) if watched else None
        self._clipper = self._new_clipper(config.clip.policy)
        self._per_token = flops_per_token(model, getattr(batches, "context", None))
        epoch = getattr(batches, "epoch_steps", None) or _ENDLESS_EPOCH_BLOCKS * config.block_steps
        self._order = DataOrder(seed=config.seed, epoch_steps=epoch, block_steps=config.block_steps)

    @classmethod
    def from_config(cls, source: str | Path | RunConfig, overrides: Mapping[str, Any] | None = None, **parts: Any) -> Self:
        """A run from a preset's name, a YAML file or a `RunConfig`.

        Args:
            source: `"tiny"`, `"my.yaml"`, a configuration.
            overrides: values on top, by dotted key: `{"optimizer.lr": 1e-3, "steps": 300}`.
            parts: `model`, `optimizer`, `batches`, `schedule`, `objective`, `validation` or `probe` of your own, in place of
                those that the configuration describes.

        Raises:
            UserError: the configuration, the corpus or the machine's memory does not allow it; nothing was started.
        """
        from trainenv.building import build_parts

        config = RunConfig.load(source, overrides)
        return cls(config=config, **build_parts(config, parts))

    # ── training ────────────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self, steps: int) -> list[Telemetry]:
        """Train for `steps` optimizer steps and return what each measured.

        The device is read every `monitor.block` steps. Past the end of the budget training goes on at the schedule's last value.
        Where it is interrupted or fails, the steps of the block are unaccounted for: go on from a snapshot.
        """
        if steps < 0:
            raise UserError(f"steps must be 0 or more, found {steps}")
        if self.folded:
            raise UserError("expected a run by itself, found one that is folded with others; call `advance` of its `Folded`")
        measured: list[Telemetry] = []
        block = self.config.monitor.block
        try:
            with self._rng.active(), devices.settings(self.config):
                for count in range(1, steps + 1):
                    self._train_step()
                    if count % block == 0 or count == steps:
                        measured.extend(self._read_block())
        except BaseException:
            self._drop_unfinished()
            raise
        return measured

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.step >= self.horizon.end

    @property
    def clip(self) -> str:
        """The clip policy in force."""
        return self._clipper.name

    @property
    def uniform_loss(self) -> float:
        """Loss of a uniform guess over the model's vocabulary, in nats: ln V."""
        vocabulary = getattr(getattr(self.model, "config", None), "vocab_size", None)
        if vocabulary is None:
            vocabulary = max((m.num_embeddings for m in self.model.modules() if isinstance(m, nn.Embedding)), default=256)
        return math.log(vocabulary)

    @property
    def flops_per_step(self) -> float:
        """FLOPs of a step, as the average of those taken so far (0 before the first)."""
        return self._line_flops / self.step if self.step else 0.0

    @property
    def flops_ahead(self) -> float:
        """FLOPs of a step to come: the average of those taken, or before the first what its batch will take."""
        return self.flops_per_step or sum(token_count(micro) for micro in self._coming_batch().micro) * self._per_token

    @property
    def flops_per_evaluation(self) -> float:
        """FLOPs of one `evaluate`: a forward pass is a third of a step's two passes."""
        return sum(token_count(micro) for micro in self._validation) * self._per_token / 3

    def flops_of_probes(self, steps: int) -> float:
        """FLOPs of the monitor's probes over so many steps, at most."""
        if self._probe is None:
            return 0.0
        return -(-steps // self.config.monitor.probe_every) * token_count(self._probe_batch) * self._per_token / 3

    @property
    def epoch(self) -> int:
        """How often the data were gone through, as of the next step's; 0 throughout where they have no epochs."""
        epoch_steps = getattr(self._batches, "epoch_steps", None)
        return self._order.index(self.step) // epoch_steps if epoch_steps else 0

    @property
    def flagged_ahead(self) -> tuple[int, ...]:
        """Data indices that the monitor flagged and that are still to come (after a rewind)."""
        return self._order.ahead(self.step, self.flagged)

    def upcoming(self, steps: int) -> tuple[int, ...]:
        """Data indices that the next `steps` steps will see."""
        return tuple(self._order.index(self.step + k) for k in range(steps))

    @property
    def base_lr(self) -> float:
        """The base learning rate of the first parameter group, before schedule and interventions."""
        return self._base[0][0]

    def lrs_ahead(self) -> list[float]:
        """The learning rate of each step left in the budget if nobody intervenes again; one step's where none is left.

        Planted stress is left out: it is not planned.
        """
        steps = range(self.step, max(self.horizon.end, self.step + 1))
        return [self.base_lr * self._lr_factor(step) for step in steps]

    def evaluate(self) -> float:
        """Validation loss in nats per token, over the fixed validation set. Changes nothing that the future depends on."""
        if not self._validation:
            raise UserError("this run has no validation set; pass validation=[micro_batch, …] to TrainingRun")
        with torch.no_grad(), evaluating(self.model), self._rng.active(keep=False), devices.settings(self.config):
            return self._validated([self._loss(micro) for micro in self._validation])

    # ── steering ────────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, intervention: Intervention) -> None:
        """Put an intervention in force from the next step on. Either the whole of it, or nothing and an error.

        Raises:
            UserError: a multiplier would leave its bounds.
        """
        bounds = self.config.interventions
        lr_scale = bounded("lr_scale", self.lr_scale * intervention.lr_scale, bounds.lr_bounds)
        decay = self.weight_decay_scale * intervention.weight_decay_scale
        decay = bounded("weight_decay_scale", decay, bounds.weight_decay_bounds)
        changes_clip = intervention.clip is not None and intervention.clip != self.clip
        clipper = self._new_clipper(intervention.clip) if changes_clip and intervention.clip else self._clipper
        self.lr_scale, self.weight_decay_scale, self._clipper = lr_scale, decay, clipper
        if intervention.momentum_reset:
            self._reset_momentum()
        if intervention.data_reorder:
            self._order = self._order.reorder(self.step)
        if intervention.skip_batch:
            self._order = self._order.skip(self.flagged_ahead)
        if not intervention.does_nothing:
            self.applied = (*self.applied, (self.step, intervention))

    def flag(self, data_indices: Iterable[int]) -> None:
        """Mark data indices as harmful, for `Intervention(skip_batch=True)`; `rewind` carries them over."""
        self.flagged = tuple(sorted({*self.flagged, *data_indices}))

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this run, keeping what was learned: the flagged data and the compute that is gone.

        The steps since are charged to *rewound*, and the horizon comes nearer by as many.
        """
        check_snapshot(snapshot)
        flagged, end, thrown_away, line = self.flagged, self.horizon.end, self.step - snapshot.step, self._line_flops
        if thrown_away < 0:
            raise UserError(f"a rewind goes back: expected a snapshot of step {self.step} or before, found step {snapshot.step}")
        self.restore(snapshot)
        self.flag(flagged)
        self.ledger.move(self.purpose, "rewound", line - self._line_flops)
        self.spend(self.horizon.end - end + thrown_away)

    def spend(self, steps: int) -> None:
        """Take `steps` steps' worth of compute off the budget: the run will end, annealed, that much earlier."""
        self.horizon = self.horizon.spend(self.step, steps)

    # ── the run as a value ──────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self, beside: Mapping[str, Any] | None = None) -> Snapshot:
        """The whole state. Tensors that are as they were in the snapshot last taken or restored are shared with it.

        Args:
            beside: parts of the state of whoever steers the run, by name; `restore` leaves them alone.
        """
        state = self._state()
        if clash := sorted(state.keys() & (beside or {}).keys()):
            raise UserError(f"names beside the run's own parts must be others than those, found {', '.join(clash)}; rename them")
        snapshot = snapshots.capture(self.step, state | dict(beside or {}), self._recent.newest())
        self._recent.add(snapshot)
        return snapshot

    def restore(self, snapshot: Snapshot, *, exact: bool = False) -> None:
        """Take on the state of a snapshot of this run or of one built alike. The ledger keeps what was spent.

        Args:
            snapshot: what `snapshot` returned, or a checkpoint as it was loaded.
            exact: refuse a snapshot that the run would not go on from bit for bit: one with rounded moments, or one that was
                taken under other numeric settings.

        Raises:
            UserError: the snapshot is of a different model or optimizer, or not exact; the run is as it was.
        """
        check_snapshot(snapshot)
        state = snapshots.expand(snapshot)
        check_alike(self.model, self.optimizer, self.config.seed, state)
        if exact:
            check_exact(snapshot, self._numerics())
        self._take_on(snapshot.step, state)
        live = self.model.state_dict()
        live.update(Copies().of(state["model"], live))  # which has written the weights; loading runs the model's hooks
        self.model.load_state_dict(live)
        optimizers.load_state(self.optimizer, state["optimizer"])
        if state["objective"] is not None:
            theirs = state["objective"]  # a module copies what it is given; of anything else we don't know
            theirs = theirs if isinstance(self.objective, nn.Module) else copy.deepcopy(theirs)
            self.objective.load_state_dict(theirs)  # type: ignore[attr-defined]
        self._recent.add(snapshot)

    def fork(self, purpose: Purpose = "verify") -> Self:
        """An independent run in the same state, charging the same ledger under `purpose`. Data and settings are shared."""
        if self.folded:
            raise UserError("expected a run by itself, found one that is folded with others; fork before folding")
        model, optimizer, objective = copy.deepcopy((self.model, self.optimizer, self.objective))
        fork = type(self)(
            model,
            optimizer,
            self._batches,
            self.config,
            objective=objective,
            schedule=self._schedule,
            validation=self._validation,
            probe=self._probe_batch,
            stress=self._stress,
            moments_lost=self._moments_lost,
            purpose=purpose,
            ledger=self.ledger,
        )
        fork._base, fork._recent = self._base, copy.copy(self._recent)
        fork._take_on(self.step, snapshots.expand(self._view()))
        return fork

    def fingerprint(self) -> str:
        """A hash of everything that the future depends on."""
        return snapshots.fingerprint(self._view(), leave_out=_NOT_THE_FUTURE)

    def _view(self) -> Snapshot:
        """The state as it is, nothing cloned: to be read before the run goes on."""
        return snapshots.view(self.step, self._state())

    def _take_on(self, step: int, state: Mapping[str, Any]) -> None:
        """Take on an expanded state but for the model, the optimizer and the objective. Keeps none of its tensors."""
        try:
            index = UncertaintyIndex(self.config.monitor.uncertainty, steps=self.config.steps)
            clipper = self._new_clipper(state["clip"]["name"])
            index.load_state_dict(state["monitor"])
            clipper.load_state_dict(state["clip"]["state"])
            applied = tuple((step, Intervention(**values)) for step, values in state["applied"])
            horizon, order = schedules.Horizon(**state["horizon"]), self._order.load_state_dict(state["order"])
            statistics = Statistics()
            statistics.load_state_dict(state["statistics"])
            self._rng.load_state_dict(state["rng"])  # the last that can be refused, and whole or not at all
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"the snapshot holds what no run of this version would ({error!r:.200}); take an earlier one"
            ) from None
        self._drop_unfinished()
        self.step, self.index, self._clipper, self._statistics = step, index, clipper, statistics
        self.lr_scale, self.weight_decay_scale = state["lr_scale"], state["weight_decay_scale"]
        self.applied, self.flagged, self.horizon, self._order = applied, tuple(state["flagged"]), horizon, order
        self._reset_at, self._line_flops = state["reset_at"], state["line_flops"]
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])

    def _state(self) -> dict[str, Any]:
        stateful = hasattr(self.objective, "state_dict")
        return {
            "model": self.model.state_dict(),
            "optimizer": {"kind": type(self.optimizer).__name__, **self.optimizer.state_dict()},
            "scaler": self._scaler.state_dict(),
            "rng": self._rng.state_dict(),
            "order": self._order.state_dict(),
            "clip": {"name": self.clip, "state": self._clipper.state_dict()},
            "monitor": self.index.state_dict(),
            "objective": self.objective.state_dict() if stateful else None,  # type: ignore[attr-defined]
            "horizon": self.horizon.state_dict(),
            "lr_scale": self.lr_scale,
            "weight_decay_scale": self.weight_decay_scale,
            "seed": self.config.seed,
            "applied": [[step, asdict(intervention)] for step, intervention in self.applied],
            "flagged": list(self.flagged),
            "reset_at": self._reset_at,
            "line_flops": self._line_flops,
            "ledger": self.ledger.as_dict(),
            "numerics": self._numerics(),
            "statistics": {"epoch": self.epoch, **self._statistics.state_dict()},
        }

    def _numerics(self) -> dict[str, Any]:
        return devices.numerics(self.model, self.optimizer, self.device, self.config)

    def _validated(self, losses: Sequence[Tensor]) -> float:
        """The mean of the losses of the validation set's micro-batches, by tokens; the passes are charged."""
        tokens = [token_count(micro) for micro in self._validation]
        self.ledger.charge("evaluate", self.flops_per_evaluation)
        weights = torch.tensor(tokens if sum(tokens) else [1] * len(tokens), dtype=torch.float64)
        return float(torch.stack(list(losses)).cpu().double() @ weights / weights.sum())

    # ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _train_step(self) -> None:
        batch = self._coming_batch()
        apart = self._clipper.policy.needs_workers
        loss, workers = backward(batch.micro, self._loss, self._parameters, self._scaler, self.optimizer, apart=apart)
        self._update(batch, loss, workers)

    def _coming_batch(self) -> Batch:
        """What the next step sees."""
        index = self._order.index(self.step)
        return as_batch(self._batches(index), index, self.config.accumulation)

    def _update(self, batch: Batch, loss: Tensor, workers: list[list[Tensor]] | None) -> None:
        """A step from its gradients on: clip them, set the rates, update the weights, note what was measured."""
        monitor = self.config.monitor
        looks = monitor.enabled and monitor.probe_every > 0 and self.step % monitor.probe_every == 0
        progress = self.horizon.progress(self.step)
        stress = 1.0 if self._stress is None else self._stress(self.step)
        if lost := self._moments_lost is not None and self._moments_lost(self.step):
            optimizers.lose_moments(self.optimizer)
        # With each micro-batch's gradient apart, the clipper fills in their mean.
        parameters = self._parameters if workers else [p for p in self._parameters if p.grad is not None]
        measured = {"loss": loss}
        if self._scaler.is_enabled():
            measured["loss_scale"] = self._scaler.scale(torch.ones((), device=self.device))
            self._scaler.unscale_(self.optimizer)
        report = self._clipper(parameters, workers=workers, optimizer=self.optimizer)
        measured["grad_norm"], measured["grad_norm_clipped"] = report.norm, report.clipped_norm
        measured["clip_threshold"], measured["clip_score"] = report.threshold, report.score
        if self._looks_back():
            measured["hypergradient_cosine"], measured["update_ratio"] = hypergradient(parameters, self.optimizer)
        if report.momentum_reset:
            self._reset_momentum()
        lr_factor = self._lr_factor(self.step) * stress
        optimizers.set_rates(self.optimizer, self._base, lr_factor, self.weight_decay_scale)
        self._scaler.step(self.optimizer)  # plain optimizer.step() where there is no loss scaling
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        tokens = sum(token_count(micro) for micro in batch.micro)
        self._line_flops += tokens * self._per_token
        self.ledger.charge(self.purpose, tokens * self._per_token)
        if looks and self._probe is not None:
            measured |= self._probe.measure()
            self._statistics.activations = self._probe.activations
            self.ledger.charge("evaluate", token_count(self._probe_batch) * self._per_token / 3)
        known = {
            "step": self.step,
            "data_index": batch.index,
            "tokens": tokens,
            "clip": self.clip,
            "lr": self._base[0][0] * lr_factor,
            "lr_scale": self.lr_scale,
            "weight_decay": self._base[0][1] * self.weight_decay_scale,
            "weight_decay_scale": self.weight_decay_scale,
            "steps_since_reset": -1 if self._reset_at is None else self.step - self._reset_at,
            "progress": progress,
            "stressors": (*batch.stressors, *["lr_spike"] * (stress != 1.0), *["lost_moments"] * lost),
        }
        self._recorder.append(known, measured)

    def _looks_back(self) -> bool:
        """Whether the gradient of the coming step is compared with the last update."""
        monitor, warmup = self.config.monitor, self.config.schedule.warmup
        if not (monitor.enabled and monitor.probe_every):
            return False
        every = 2 * monitor.probe_every
        if self.step < _WARM * warmup:
            every = min(every, max(1, warmup // _WARMUP_LOOKS))
        return self.step % every == 0

    def _lr_factor(self, step: int) -> float:
        """Factor on the base learning rate of the step after `step` completed ones, as planned."""
        warmth = schedules.warmth(step, self._reset_at, self.config.reset_warmup)
        return self._schedule(step, self.horizon.progress(step)) * self.lr_scale * warmth

    def _loss(self, micro: Any) -> Tensor:
        with self._autocast():
            return self.objective(self.model, placed(micro, self.device))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.config.precision == "bf16" else torch.float16)

    def _read_block(self) -> list[Telemetry]:
        """The telemetry of the steps since the last block."""
        return [self._read(t) for t in self._recorder.drain()]

    def _read(self, telemetry: Telemetry) -> Telemetry:
        """Telemetry with the index's reading; data read under alarm is flagged."""
        self._statistics.update(telemetry)
        if not self.config.monitor.enabled:
            return telemetry
        reading = self.index.update(telemetry)
        if reading.index >= reading.threshold:
            self.flag((telemetry.data_index,))
        return replace(telemetry, reading=reading)

    def _drop_unfinished(self) -> None:
        """Forget what a step that did not end has left: gradients, telemetry that was not read, the scaler's notes."""
        self.optimizer.zero_grad(set_to_none=True)
        self._recorder = Recorder()
        if self._scaler.is_enabled():
            scale = self._scaler.state_dict()
            self._scaler = torch.amp.GradScaler(self.device.type)
            self._scaler.load_state_dict(scale)

    def _new_clipper(self, name: str) -> clipping.Clipper:
        return clipping.make(name, **self.config.clip.options_of(name))

    def _reset_momentum(self) -> None:
        """Reset the moments and warm the learning rate up again: bare resets cost 0.16 to 0.25 nats at the end of a run."""
        optimizers.reset_moments(self.optimizer)
        self._reset_at = self.step
