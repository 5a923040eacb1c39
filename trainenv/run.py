"""`TrainingRun`: a training run whose whole state can be saved, restored and forked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.data.streams import StreamBatches
from trainenv.distributed.processes import ALONE, Processes
from trainenv.models.spec import spec_of
from trainenv.monitor.alarm_detail import LayerNorms, largest_logits, layer_names
from trainenv.monitor.hypergradient import ObservedStep, due
from trainenv.monitor.monitor import Monitor
from trainenv.monitor.probe import Probe, evaluating
from trainenv.monitor.recorder import OBJECTIVE
from trainenv.objectives import NextToken
from trainenv.tools.packing import pack, unpack
from trainenv.tools.rng import RandomState, exclusive
from trainenv.training import forking, numerics, optimizers, parts, schedules, snapshots, trial
from trainenv.training.backward import (
    Pass,
    as_loss,
    backward,
    mean_loss,
    mean_of,
    shared_losses,
)
from trainenv.training.compatibility import check_alike, check_exact, check_snapshot
from trainenv.training.ledger import Ledger
from trainenv.training.micro_batches import as_batch, pass_size, placed
from trainenv.training.parameter_names import unwrapped
from trainenv.training.rates import PlannedRates, ahead
from trainenv.training.steering import Steered, clipping_row
from trainenv.training.turns import Turns
from trainenv.training.weights import Weights, evaluated
from trainenv.types import (
    Batch,
    Batches,
    CountedObjective,
    Emphasis,
    LossSum,
    MeasuredObjective,
    Objective,
    Purpose,
    Run,
    Schedule,
    Snapshot,
    SteeredObjective,
    Telemetry,
    UserError,
    as_whole,
)

if TYPE_CHECKING:
    from typing import Self

_ENDLESS_EPOCH_BLOCKS = 64  # blocks that a reorder shuffles if the data has no epochs
# parts without effect on the future
_NOT_IN_FINGERPRINT = ("ledger", "numerics", "statistics", "stream")


class TrainingRun(Steered):
    """Training of a model, one optimizer step at a time, whose state is a value between steps.

    `snapshot → restore → advance(n)` gives the same bits as `advance(n)`. Two forks that are
    advanced alike stay equal, and a failed branch leaves its parent untouched. `fingerprint()`
    proves it.

    Args:
        model: Module whose loss is `objective(model, micro_batch)`. A model that is in evaluation
            mode as a whole, as `from_pretrained` of transformers returns it, is put into training
            mode; a single part in evaluation mode stays in it. State that training changes belongs
            in parameters and buffers: a plain attribute is part of forks, but not of snapshots.
        optimizer: Optimizer over the model's parameters, or a list of them, which becomes a
            `ChainedOptimizer`. The learning rates and weight decays of its groups are the base
            values; those in force are base × schedule × intervention. A
            scheduler attached to it has no further effect: the base is then the rate before it
            (`initial_lr`). Parameters may be unfrozen, and groups added, between steps. An
            optimizer with `train()` and `eval()` is evaluated, probed and exported in `eval()`.
        batches: Training data, a pure function of the data index; see `trainenv.types.Batches`.
        config: Training configuration, or a mapping of its keys.
        objective: Loss of a micro-batch, a mean or a `LossSum`; next-token prediction by default.
            It is computed once before the run starts, to check it.
        schedule: Factor on the base learning rate; the configured one by default.
        validation: Micro-batches that `evaluate` averages over.
        full_validation: Micro-batches that `evaluate_fully` averages over; `validation` by default.
        test: Micro-batches that `test_loss` averages over; held out from all methods.
        probe: Small clean micro-batch on which the monitor measures the model; without one there
            are no entropies.
        stress: Factor on the learning rate by step, to plant an instability.
        moments_lost: Function of the step that is true where the optimizer's moments are lost, to
            plant a fault.
        purpose: Purpose that this run's FLOPs are charged to.
        ledger: Ledger of FLOPs; a new one by default.
        processes: Processes that train the model together, each with its share of every batch. All
            of them call the same methods in the same order.

    Raises:
        UserError: A part is of a wrong kind or does not fit the others. Nothing was changed.
    """

    in_place: ClassVar[bool] = False  # True for a fork that borrows the tensors of its run

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        batches: Batches,
        config: TrainingConfig | Mapping[str, Any],
        *,
        objective: Objective | None = None,
        schedule: Schedule | None = None,
        validation: Iterable[Any] = (),
        full_validation: Iterable[Any] = (),
        test: Iterable[Any] = (),
        probe: Any = None,
        stress: Callable[[int], float] | None = None,
        moments_lost: Callable[[int], bool] | None = None,
        purpose: Purpose = "main",
        ledger: Ledger | None = None,
        processes: Processes = ALONE,
    ) -> None:
        own = parts.check(
            model,
            optimizer,
            batches,
            config,
            objective,
            schedule,
            validation,
            full_validation,
            test,
            probe,
            stress,
            moments_lost,
        )
        self.model = own.model
        self.optimizer = own.optimizer
        self.objective = own.objective
        epoch_steps = getattr(batches, "epoch_steps", None)
        self._begin(own.config, epoch_steps=epoch_steps, purpose=purpose, ledger=ledger)
        self.folded = False  # True once its weights are rows of a `trainenv.rollouts.Folded`
        self.processes = processes
        self._batches = own.batches
        self._probe_batch = own.probe
        self._rates = PlannedRates(
            schedule=own.schedule or schedules.make(own.config.schedule),
            reset_warmup=own.config.reset_warmup,
            stress=own.stress,
        )
        self._moments_lost = own.moments_lost
        self._parameters, self._base = parts.trained(own.model, own.optimizer, own.objective)
        self.device = self._parameters[0].device
        self._weights = Weights(own.model, own.optimizer, own.objective)
        self._turns = None  # forks are copies, unless the model is spread over processes
        if processes.size > 1 or not processes.same_state:
            self._turns = Turns(self)
        self._recent = snapshots.Recent()
        model = unwrapped(own.model)
        context = getattr(batches, "context", None)
        self._context = context
        self._per_token = float(spec_of(model).flops_per_token(model, context))
        self._equip()
        own = trial.try_out(own, self._rng, self.device)
        self._validation = own.validation
        self._full_validation = own.full_validation or own.validation
        self._test = own.test
        self._view()  # a state that cannot be saved is refused now
        parts.train(own.model)
        optimizers.own_rates(own.optimizer)

    def _equip(self) -> None:
        """Make the parts that no fork shares: random state, scaler, monitor, clipper."""
        self._rng = RandomState(self.processes.seed(self.config.seed), self.device)
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.config.precision == "fp16"
        )
        self._monitor = Monitor(
            self.config.monitor,
            steps=self.config.steps,
            probe=self._new_probe(),
            agreed=self.processes.agreed,
        )
        self._clipper = self._new_clipper(self.config.clip.in_force)
        self._observed = ObservedStep()
        self._layer_norms = LayerNorms()
        self._alarms: dict[int, int] = {}  # steps of the last block's alarms, with their data

    def _new_probe(self) -> Probe | None:
        monitor = self.config.monitor
        if self._probe_batch is None or not (monitor.enabled and monitor.probe_every):
            return None
        batch = placed(self._probe_batch, self.device)
        return Probe(self.model, batch, lambda micro: mean_of(self._loss(micro)))

    @classmethod
    def from_config(
        cls,
        source: str | Path | RunConfig,
        overrides: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> Self:
        """Build a run from a preset's name, a YAML file or a `RunConfig`.

        Args:
            source: Name of a preset (`"tiny"`), path of a YAML file, or a configuration.
            overrides: Values on top, by dotted key: `{"optimizer.lr": 1e-3, "steps": 300}`.
            parts: Your own `model`, `optimizer`, `batches`, `schedule`, `objective`,
                `validation`, `test` or `probe`, in place of the configured ones.

        Raises:
            UserError: The configuration, the corpus or the machine's memory does not allow it.
        """
        from trainenv.training.assemble import build_parts

        config = RunConfig.load(source, overrides)
        # No other thread may train while a model draws its weights; a given model has its weights.
        with exclusive() if parts.get("model") is None else nullcontext():
            return cls(config=config, **build_parts(config, parts))

    # ── training ──────────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)
    def advance(self, steps: int) -> list[Telemetry]:
        """Train for `steps` optimizer steps and return the telemetry of each.

        The device is read every `monitor.block` steps. After the end of the budget the schedule
        keeps its last value. If it is interrupted or fails, the steps of the current block are
        lost: continue from a snapshot.
        """
        steps = as_whole(steps, "steps", least=0)
        if self.folded:
            raise UserError(
                "expected a single run, found one that is folded with others; "
                "call `advance` of its `Folded`"
            )
        self._take_in()
        parts.train(self.model)
        optimizers.train(self.optimizer)
        measured: list[Telemetry] = []
        block = self.config.monitor.block
        try:
            with torch.enable_grad(), self._rng.active(), numerics.settings(self.config):
                for count in range(1, steps + 1):
                    self._train_step()
                    if count % block == 0 or count == steps:
                        measured.extend(self._read_block())
        except BaseException:
            self._drop_unfinished()
            self.processes.recover(self.model)
            raise
        return measured

    @property
    def diverged(self) -> bool:
        """True if further training is useless; see `Steered`."""
        self._take_turn()
        found = super().diverged
        if self.processes.size == 1:
            return found
        return bool(self.processes.total(torch.tensor(float(found), device=self.device)))

    @property
    def emphases(self) -> tuple[str, ...]:
        """Changes of the objective's emphasis that are possible now; none for most objectives."""
        if isinstance(self.objective, SteeredObjective):
            return self.objective.emphases
        return super().emphases

    @property
    def batches(self) -> Batches:
        """Training data, a pure function of the data index."""
        return self._batches

    @property
    def flops_ahead(self) -> float:
        """FLOPs of a step to come: the mean so far; before the first step those of its batch."""
        if known := self.flops_per_step:
            return known
        with self._rng.active(keep=False):  # batches may use or seed the global generators
            return self._flops_of(self._coming_batch().micro)

    @property
    def flops_per_evaluation(self) -> float:
        """FLOPs of one `evaluate`: a forward pass takes a third of a step."""
        return self._forward_flops(self._validation)

    def flops_of_probes(self, steps: int) -> float:
        """Return the most FLOPs that the monitor's probes take over `steps` steps."""
        if self._monitor.probe is None:
            return 0.0
        probes = -(-steps // self.config.monitor.probe_every)
        return probes * self._forward_flops([self._probe_batch])

    def _flops_of(self, micros: Iterable[Any]) -> float:
        """Return the FLOPs of a forward and backward pass; padding costs as much as labels."""
        per_token = self._per_token
        if isinstance(self.objective, CountedObjective):
            per_token = self.objective.flops_per_token(
                unwrapped(self.model), self._context, self._flops_of_model
            )
        return sum(pass_size(micro) for micro in micros) * per_token

    def _forward_flops(self, micros: Iterable[Any]) -> float:
        """Return the FLOPs of a forward pass of the model, without what an objective adds."""
        return sum(pass_size(micro) for micro in micros) * self._per_token / 3

    def _flops_of_model(self, model: nn.Module) -> float:
        """Return the FLOPs of a forward and backward pass of any model, for one token."""
        return float(spec_of(model).flops_per_token(model, self._context))

    @property
    def epoch(self) -> int:
        """Epoch of the next step's data; 0 if the data have no epochs."""
        epoch_steps = getattr(self._batches, "epoch_steps", None)
        if epoch_steps:
            return self._order.index(self.step) // self._order.epoch_steps
        return 0

    @property
    def base_lr(self) -> float:
        """Base learning rate of the first parameter group, before schedule and interventions."""
        return self._base[0][0]

    def lrs_ahead(self) -> list[float]:
        """Return the learning rate of each step left in the budget, without further interventions.

        If no step is left, the list holds the rate of one step. Planted stress is left out, because
        it is not planned. Rates more than 20 000 steps ahead are interpolated.
        """
        end = max(self.horizon.end, self.step + 1)
        return ahead(lambda step: self.base_lr * self._lr_factor(step), self.step, end)

    def evaluate(self) -> float:
        """Return the loss over the validation set in nats per token; changes no state."""
        loss = self._loss_on(self._validation, "validation")
        self.ledger.charge("evaluate", self.flops_per_evaluation)
        return loss

    def evaluate_fully(self) -> float:
        """Return the loss over the whole validation part in nats per token; changes no state.

        It is charged like `evaluate`, with as many more FLOPs as it has more tokens.
        """
        loss = self._loss_on(self._full_validation, "validation")
        self.ledger.charge("evaluate", self._forward_flops(self._full_validation))
        return loss

    @property
    def has_test_set(self) -> bool:
        """True if `test_loss` can be measured."""
        return bool(self._test)

    @torch.inference_mode(False)
    def diagnosis(self, step: int) -> dict[str, Any]:
        """Return what is known of an alarm at a step of the last block; changes no state.

        Returns:
            The gradient norm of each layer, the layer that is the oddest, and for the first alarm
            of the block the largest attention logit that the model has now on the data of that
            step; see `trainenv.monitor.alarm_detail`. That forward pass is charged to *evaluate*.
            Empty if the step raised no alarm.
        """
        if step not in self._alarms:
            return {}
        found = self._layer_norms.of(step, layer_names(unwrapped(self.model), self._parameters))
        if step > min(self._alarms):  # a forward pass for each would cost much where alarms abound
            return found
        with self._evaluating():
            micro = self._batch_of(self._alarms[step]).micro[0]
            logits = largest_logits(unwrapped(self.model), lambda: self._loss(micro))
        if logits:
            self.ledger.charge("evaluate", self._flops_of([micro]) / 3)
            found |= {"attention_logit": max(logits), "attention_block": logits.index(max(logits))}
        return found

    def test_loss(self) -> float:
        """Return the loss over the test set in nats per token; changes no state.

        It is the experimenter's measurement, so it is charged to no budget and no ledger. Methods
        that train the run must not call it.

        Raises:
            UserError: The run has no test set.
        """
        return self._loss_on(self._test, "test")

    # ── the run as a value ────────────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)
    def snapshot(self, extra: Mapping[str, Any] | None = None) -> Snapshot:
        """Return the whole state. Tensors unchanged since the last snapshot are shared with it.

        Args:
            extra: Further parts of the state, by name, for whoever steers the run. `restore`
                ignores them.
        """
        self._take_turn()
        state = self._state()
        state["optimizer"] |= optimizers.names_of(self.optimizer)
        if clash := sorted(state.keys() & (extra or {}).keys()):
            raise UserError(
                f"further parts must have other names than the run's own, found "
                f"{', '.join(clash)}; rename them"
            )
        if averaged := evaluated(self.model, self.optimizer):
            state["evaluated"] = averaged
        snapshot = snapshots.capture(self.step, state | dict(extra or {}), self._recent.newest())
        self._recent.add(snapshot)
        return snapshot

    @torch.inference_mode(False)
    def restore(self, snapshot: Snapshot, *, exact: bool = False) -> None:
        """Restore a snapshot of this run or of one built alike. The ledger keeps what was spent.

        Args:
            snapshot: Return value of `snapshot`, or a loaded checkpoint.
            exact: True to refuse a snapshot from which the run would not continue bit for bit: one
                with rounded moments, or one taken under other numeric settings.

        Raises:
            UserError: The snapshot is of a different model or optimizer, or not exact. The run is
                unchanged.
        """
        check_snapshot(snapshot)
        state = snapshots.expand(snapshot)
        check_alike(self.model, self.optimizer, self.config.seed, state)
        if exact:
            check_exact(snapshot, self.numerics())
        self._take_turn(load=False)
        self._take_on(snapshot.step, state)
        self._load_trained(state)
        if isinstance(self._batches, StreamBatches) and "stream" in state:
            self._batches.load_state_dict(unpack(state["stream"]))
        self._recent.add(snapshot)

    def _take_turn(self, *, load: bool = True) -> None:
        """Put the run into the live parts, if runs take turns in them."""
        if self._turns is not None:
            self._turns.take(self, load=load)

    def park(self) -> Snapshot:
        """Return the state of the live parts, before another run takes its turn in them."""
        return snapshots.capture(self.step, self._state(), self._recent.newest())

    def unpark(self, snapshot: Snapshot) -> None:
        """Put the state that `park` returned into the live parts."""
        self._load_trained(snapshots.expand(snapshot))

    @exclusive()
    @torch.inference_mode(False)
    def fork(self, purpose: Purpose = "verify") -> Self:
        """Return an independent run in the same state that charges the same ledger for `purpose`.

        Data and settings are shared.
        """
        if self.folded:
            raise UserError(
                "expected a single run, found one that is folded with others; fork before folding"
            )
        self._take_in()
        fork = copy.copy(self)
        if self._turns is not None:
            return self._begin_turns(fork, purpose)
        fork.model, fork.optimizer, fork.objective = forking.copy_trained(
            self.model, self.optimizer, self.objective
        )
        fork.purpose = purpose
        fork._recent = copy.copy(self._recent)
        fork._equip()
        fork._take_in()
        fork._take_on(self.step, snapshots.expand(self._view()))
        return fork

    def _begin_turns(self, fork: Self, purpose: Purpose) -> Self:
        """Make a shallow copy of the run a fork that takes turns with it."""
        assert self._turns is not None
        fork.purpose = purpose
        fork._recent = copy.copy(self._recent)
        fork._equip()
        snapshot = self.park()
        fork._take_on(self.step, snapshots.expand(snapshot))
        self._turns.add(fork, snapshot)
        return fork

    def check_forkable(self) -> None:
        """Check that the run can be forked, before it is steered; changes nothing.

        Raises:
            UserError: Names the part of model, optimizer or objective that cannot be copied, and
                the remedy.
        """
        if self._turns is not None:
            return
        forking.check_forkable(self.model, self.optimizer, self.objective)

    def fingerprint(self) -> str:
        """Return a hash of everything that the future depends on."""
        own = snapshots.fingerprint(self._view(), leave_out=_NOT_IN_FINGERPRINT)
        return self.processes.fingerprint(own)

    def _view(self) -> Snapshot:
        """Return the state without copying it: valid until the next step."""
        self._take_turn()
        return snapshots.view(self.step, self._state())

    def _state(self) -> dict[str, Any]:
        observed = {}
        if self._observed.before is not None:
            observed["observed"] = self._observed.before
        stream = {}
        if isinstance(self._batches, StreamBatches):
            stream["stream"] = pack(self._batches.state_dict(), "the place of the data")
        return {
            **observed,
            **stream,
            **self._trained_state(),
            "scaler": self._scaler.state_dict(),
            "rng": self._rng.state_dict(),
            **self._steering_state(),
            "ledger": self.ledger.as_dict(),
            "numerics": self.numerics(),
            "statistics": {"epoch": self.epoch, **self._monitor.statistics.state_dict()},
        }

    def numerics(self) -> dict[str, Any]:
        """Return all settings that the bits of the run depend on, as JSON values."""
        settings = numerics.numerics(self.model, self.optimizer, self.device, self.config)
        return settings | self.processes.settings()

    def _trained_state(self) -> dict[str, Any]:
        """Return the state of model, optimizer and objective, without copies."""
        objective = None
        if hasattr(self.objective, "state_dict"):
            objective = self.objective.state_dict()
        return {
            **self._weights.state(self.model, self.optimizer, self.objective),
            "optimizer": optimizers.state_of(self.optimizer),
            "objective": objective,
        }

    def _load_trained(self, state: Mapping[str, Any]) -> None:
        """Restore what `_trained_state` returned; none of its tensors are kept."""
        self._weights.load(self.model, self.optimizer, self.objective, state)
        optimizers.load_state(self.optimizer, state["optimizer"])
        if (saved := state["objective"]) is not None:
            if not isinstance(self.objective, nn.Module):  # which copies what it loads
                saved = copy.deepcopy(saved)
            self.objective.load_state_dict(saved)  # type: ignore[attr-defined]

    @property
    def state_bytes(self) -> int:
        """Bytes of the trained parts on their devices: weights, buffers, moments."""
        return sum(tensor.nbytes for tensor in snapshots.tensors_of(self._trained_state()))

    @torch.inference_mode(False)
    def _loss_on(self, micros: Sequence[Any], name: str) -> float:
        """Return the mean loss over the labelled tokens of a set, in nats; changes no state.

        The model is in evaluation mode. One micro-batch after the other is on the device.
        """
        if not micros:
            remedy = ""
            if name == "test":
                remedy = ", or set validation.test_sequences"
            raise UserError(
                f"this run has no {name} set; pass {name}=[micro_batch, …] to TrainingRun{remedy}"
            )
        with self._evaluating():
            losses = shared_losses(micros, self._loss, self.processes)
            return mean_loss(losses, micros)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put model and optimizer in evaluation mode inside the block, which changes no state."""
        self._take_turn()
        with (
            torch.no_grad(),
            optimizers.evaluating(self.optimizer),
            evaluating(self.model),
            self._rng.active(keep=False),
            numerics.settings(self.config),
        ):
            yield

    def _validated(self, losses: Sequence[Tensor | LossSum]) -> float:
        """Return the mean of the validation set's losses; charge the passes.

        A group of runs computes the losses of all its runs at once.
        """
        self.ledger.charge("evaluate", self.flops_per_evaluation)
        return mean_loss(losses, self._validation)

    # ── one step ──────────────────────────────────────────────────────────────────────────────────

    def _take_in(self) -> None:
        """Update the trained parameters: some may have been unfrozen, and groups added."""
        self._take_turn()
        self._parameters, self._base = parts.trained(
            self.model, self.optimizer, self.objective, self._base
        )
        self.optimizer.zero_grad(set_to_none=True)  # new parameters may hold old gradients

    def _train_step(self) -> None:
        batch = self._coming_batch()
        apart = self._clipper.policy.needs_workers
        model = self.processes.trained_form(self.model)
        done = backward(
            batch.micro,
            lambda micro: self._loss(micro, model),
            self._parameters,
            self._scaler,
            self.optimizer,
            apart=apart,
            processes=self.processes,
            model=self.model,
        )
        self._update(batch, done)

    def _coming_batch(self) -> Batch:
        """Return the batch of the next step."""
        return self._batch_of(self._order.index(self.step))

    def _batch_of(self, index: int) -> Batch:
        """Return the batch of a data index."""
        bare = isinstance(self.objective, NextToken)
        return as_batch(self._batches(index), index, self.config.accumulation, bare=bare)

    def _update(self, batch: Batch, done: Pass) -> None:
        """Finish a step that has its gradients: clip, set the rates, update the weights, record."""
        monitor = self._monitor
        probes = monitor.probes(self.step)
        progress = self.horizon.progress(self.step)
        stress = self._rates.planted(self.step)
        if lost := self._moments_lost is not None and bool(self._moments_lost(self.step)):
            optimizers.lose_moments(self.optimizer)
        measured = {"loss": done.loss}
        if isinstance(self.objective, MeasuredObjective):
            found = self.objective.measured()
            measured |= {f"{OBJECTIVE}{name}": value for name, value in found.items()}
        if self._scaler.is_enabled():
            measured["loss_scale"] = self._scaler.scale(torch.ones((), device=self.device))
            self._scaler.unscale_(self.optimizer)
        # Where each micro-batch has its own gradient, the clipper fills in their mean.
        warmup = self.config.schedule.warmup
        with self.processes.over_shards():
            report = self._clipper(
                self._parameters,
                workers=done.workers,
                optimizer=self.optimizer,
                known=done.known,
                loss=done.loss,
            )
            measured |= clipping_row(report)
            if done.known is not False and due(self.step, self.config.monitor, warmup):
                cosine, ratio = self._observed.measure(self._parameters, self.optimizer)
                measured["hypergradient_cosine"] = cosine
                measured["update_ratio"] = ratio
        if report.momentum_reset:
            self._reset_momentum()
        lr_factor = self._lr_factor(self.step) * stress
        optimizers.set_rates(self.optimizer, self._base, lr_factor, self.weight_decay_scale)
        wanted = due(self.step + 1, self.config.monitor, warmup)
        self._observed.observe(self._parameters, self.optimizer, wanted=wanted)
        optimizers.step(self.optimizer, self._scaler, skip=report.skip)
        self._scaler.update()
        self._layer_norms.append(self.step + 1, report.tensor_norms, self._parameters)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        flops = self._flops_of(batch.micro)
        self._line_flops += flops
        self.ledger.charge(self.purpose, flops)
        if probes:
            with optimizers.evaluating(self.optimizer):
                measured |= monitor.measure()
            self.ledger.charge("evaluate", self._forward_flops([self._probe_batch]))
        planted = (
            *batch.stressors,
            *["lr_spike"] * (stress != 1.0),
            *["lost_moments"] * lost,
        )
        known = self._host_row(
            data_index=batch.index,
            lr=self._base[0][0] * lr_factor,
            weight_decay=self._base[0][1] * self.weight_decay_scale,
            progress=progress,
            stressors=planted,
        )
        if isinstance(done.tokens, Tensor):
            measured["tokens"] = done.tokens.to(self.device)
        else:
            known["tokens"] = round(done.tokens)
        monitor.append(known, measured)

    def _lr_factor(self, step: int) -> float:
        """Return the planned factor on the base learning rate of the step after `step` steps."""
        return self._rates.factor(
            step, self.horizon, lr_scale=self.lr_scale, reset_at=self._reset_at
        )

    def _loss(self, micro: Any, model: nn.Module | None = None) -> Tensor | LossSum:
        with numerics.autocast(self.config, self.device):
            return as_loss(self.objective(model or self.model, placed(micro, self.device)))

    def _read_block(self) -> list[Telemetry]:
        """Return the telemetry since the last block; flag data read while the index was high."""
        block = super()._read_block()
        self._layer_norms.close_block()
        self._alarms = {t.step: t.data_index for t in block if t.reading.fired}
        return block

    def _adjust_objective(self, emphasis: Emphasis) -> None:
        if not isinstance(self.objective, SteeredObjective):
            super()._adjust_objective(emphasis)
            return
        self.objective.adjust(emphasis)

    def _take_on(self, step: int, state: Mapping[str, Any]) -> None:
        """Take on an expanded state except for model, optimizer and objective, whole or not at all.

        Raises:
            UserError: A part of the run cannot take its part of the state; the run is unchanged.
        """
        # The generators come last, because loading them changes the run at once.
        self._take_on_steering(step, state, lambda: self._rng.load_state_dict(state["rng"]))
        self._observed = ObservedStep()
        if "observed" in state:
            self._observed.before = [one.to(self.device) for one in state["observed"]]
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])

    def _drop_unfinished(self) -> None:
        """Drop the traces of an unfinished step: gradients, telemetry, the scaler's notes."""
        self.optimizer.zero_grad(set_to_none=True)
        super()._drop_unfinished()
        self._layer_norms = LayerNorms()
        self._alarms = {}
        if self._scaler.is_enabled():
            scale = self._scaler.state_dict()
            self._scaler = torch.amp.GradScaler(self.device.type)
            self._scaler.load_state_dict(scale)

    def _reset_momentum(self) -> None:
        """Reset the moments and warm the learning rate up again.

        A reset without warm-up costs 0.16 to 0.25 nats at the end of a run.
        """
        self._take_turn()
        optimizers.reset_moments(self.optimizer)
        self._reset_at = self.step


def make_run(source: str | Path | RunConfig, overrides: Mapping[str, Any] | None = None) -> Run:
    """Build a run from a configuration; see `TrainingRun.from_config`."""
    return TrainingRun.from_config(source, overrides)
