"""`attach`: a `Trainer` of transformers or TRL, watched or steered.

    trainer = SFTTrainer(model, args=args, train_dataset=data, eval_dataset=held_out)
    trainenv.attach(trainer, out="runs/mine")
    trainer.train()

The Trainer trains the branches too. While it does, its callbacks are not called, and nothing is
logged, saved or evaluated. Its checkpoints hold our state and are resumed as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from trainenv.integrations.attach import checkpoint_folders, processes
from trainenv.integrations.attach.begin import begin
from trainenv.integrations.attach.data import Data, LoaderSource, Source
from trainenv.integrations.attach.held_out import HeldOut
from trainenv.integrations.attach.parts import ModelPart, OptimizerPart, StatefulPart
from trainenv.integrations.attach.rates import inner, scheduled_rates
from trainenv.integrations.attach.session import Session
from trainenv.integrations.attach.settings import Choices
from trainenv.integrations.attach.streams import StreamSource, stream_in
from trainenv.integrations.huggingface_parts import (
    ENDLESS,
    EpochLength,
    Loader,
    check,
    counters_of,
    held_out_batches,
    loss_of_batch,
)
from trainenv.loop import Callback
from trainenv.report.run.run_report import RunReport
from trainenv.tools import rng
from trainenv.tools.optional import require
from trainenv.tools.paths import expanded

_THEIRS = ("model", "optimizer", "scheduler", "scaler")  # parts that their checkpoints hold


def attach(
    trainer: Trainer,
    *,
    out: str | Path,
    mode: str = "branching",
    budget: str = "extra",
    max_waste: float = 0.1,
    config: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> Attachment:
    """Watch or steer a `Trainer` from its next `train()` on.

    Args:
        trainer: Trainer of transformers, or one that is derived from it, as those of TRL are.
        out: Folder to record in, for `trainenv report`.
        mode: `watch` (nothing changes), `rules` (clip, roll back, skip data, lower the rate) or
            `branching` (changes are tried first).
        budget: `extra` to train branches on top of the steps, `included` to take them off.
        max_waste: Largest share of the steps that is wasted on branches.
        config: Further settings by section of `trainenv.TrainingConfig`.
        callback: Callback that steers instead of the mode's own.

    Raises:
        UserError: The Trainer cannot be steered as asked; the sentence says what to change.
    """
    require("accelerate", "attaching to a Trainer")
    choices = Choices(
        mode=mode, budget=budget, max_waste=max_waste, config=config, callback=callback
    )
    check(trainer, mode)
    kind = Attachment
    if mode != "watch" and not hasattr(trainer, "_init_training_state"):
        from trainenv.integrations.huggingface_4 import Attachment4

        kind = Attachment4
    return kind(choices, trainer, expanded(out))


class Attachment:
    """A Trainer that is watched or steered; made by `attach`.

    Attributes:
        session: Run in place and its program; there once training has begun.
    """

    session: Session

    def __init__(self, choices: Choices, trainer: Trainer, out: Path) -> None:
        self._choices = choices
        self._trainer: Any = trainer
        self._out = out
        self._data: Data | None = None
        self._lrs: Sequence[float] = ()
        self._saved: Mapping[str, Any] | None = None
        self._owes_save = False
        self._counts_anew = False  # true while the Trainer's epoch ends without that of the data
        self._epochs = 0
        self._own_train = trainer.train
        trainer.train = self._train  # type: ignore[method-assign]

    @property
    def steers(self) -> bool:
        """True if the run may be changed."""
        return self._choices.steers

    @property
    def statement(self) -> str:
        """Upper bound on the cost of the mode, in a sentence; known once training has begun."""
        return self.session.statement

    def report(self) -> RunReport:
        """Return the report of the run, as this process has recorded it."""
        return RunReport(processes.own(self._out))

    # ── the Trainer's methods that we stand before ────────────────────────────────────────────────

    def _train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **more: Any
    ) -> Any:
        folder = Path(self._trainer.args.output_dir)
        found, self._saved = checkpoint_folders.resolve(folder, resume_from_checkpoint)
        try:
            with self._in_between():
                return self._own_train(found, *args, **more)
        finally:
            if hasattr(self, "session"):
                self.session.close()

    @contextmanager
    def _in_between(self) -> Iterator[None]:
        """Stand before methods of the Trainer inside the block."""
        trainer = self._trainer
        handler = trainer.callback_handler
        ours = [
            (trainer, "training_step", self._training_step),
            (trainer, "create_scheduler", self._create_scheduler),
            (trainer, "_get_learning_rate", self._learning_rate),
            (trainer.accelerator, "clip_grad_norm_", self._clip),
        ]
        if self.steers:
            ours += [
                (trainer, "get_train_dataloader", self._train_dataloader),
                (trainer, "get_batch_samples", self._batch_samples),
                (trainer, "set_initial_training_values", self._initial_values),
                (handler, "call_event", self._call_event),
                *self._of_version(),
            ]
        self._own = {name: getattr(thing, name) for thing, name, _ in ours}
        before = [(thing, name, vars(thing).get(name)) for thing, name, _ in ours]
        hooks = Hooks(self)
        handler.callbacks.insert(0, hooks)
        for thing, name, method in ours:
            setattr(thing, name, method)
        try:
            yield
        finally:
            for thing, name, held in before:
                if held is None:
                    delattr(thing, name)
                else:
                    setattr(thing, name, held)
            handler.callbacks = [one for one in handler.callbacks if one is not hooks]

    def _of_version(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Return what only this version of transformers has: object, name, our method."""
        return [(self._trainer, "_init_training_state", self._initial_state)]

    def _training_step(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Tensor:
        run = self.session.current
        run.count(inputs)
        loss: Tensor = self._own["training_step"](model, inputs, *args, **more)
        run.add_loss(loss)
        return loss

    def _create_scheduler(self, num_training_steps: int, *args: Any, **more: Any) -> Any:
        made = self._own["create_scheduler"](num_training_steps, *args, **more)
        trainer = self._trainer
        self._lrs = scheduled_rates([trainer.lr_scheduler], trainer.optimizer, num_training_steps)
        return made

    def _learning_rate(self) -> float:
        """Return the rate in force, for the Trainer's log."""
        rate: float = self._own["_get_learning_rate"]()
        factor = self.session.current.rate_factor
        return rate if factor == 1.0 else rate * factor

    def _clip(self, parameters: Any, max_norm: float, *args: Any, **more: Any) -> Any:
        run = self.session.current
        if self._trainer.accelerator.scaler is None:
            run.clip_gradients()
            return self._own["clip_grad_norm_"](parameters, max_norm, *args, **more)
        norm = self._own["clip_grad_norm_"](parameters, max_norm, *args, **more)
        run.clip_gradients()  # once they are unscaled
        return norm

    def _train_dataloader(self) -> Loader:
        from accelerate.utils import send_to_device

        prepared = self._own["get_train_dataloader"]()
        base = getattr(prepared, "base_dataloader", prepared)
        arguments = self._trainer.args
        accumulation = arguments.gradient_accumulation_steps
        device = arguments.device

        def place(batch: Any) -> Any:
            return send_to_device(batch, device)

        source: Source = LoaderSource(base, place=place, counted=True)
        if (stream := stream_in(base)) is not None:
            steps = arguments.max_steps * accumulation
            with suppress(TypeError):  # a stream without a length
                steps = len(base)
            source = StreamSource(stream, steps, device, place=place)
        ahead = base is not prepared
        self._data = Data(source, accumulation=accumulation, ahead=ahead, device=device)
        return Loader(prepared)

    def _batch_samples(self, iterator: Any, count: int, *args: Any) -> Any:
        """Return the micro-batches of the next step, which may be fewer at the end of an epoch."""
        data = self._data
        assert data is not None
        index = self.session.boundary()
        assert index is not None
        epoch = data.epoch_of(index)
        window = data.window(index)
        batches = (data.fetch(epoch, place) for place in window)
        return self._own["get_batch_samples"](batches, len(window), *args)

    def _initial_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Let the Trainer's loop go on for ever: the run ends it, and each of its epochs."""
        epochs, _, examples, samples, batch, _, steps = self._own["set_initial_training_values"](
            args, dataloader
        )
        self._epochs = epochs
        return ENDLESS, ENDLESS, examples, samples, batch, self._length(0), steps

    def _length(self, value: int) -> EpochLength:
        """Return a length of an epoch that ends where the data end it."""
        assert self._data is not None
        return EpochLength.of(value, self._data, lambda: self.session.current.unfinished)

    def _initial_state(self, *args: Any, **more: Any) -> tuple[int, int]:
        """Begin at the first batch: our data know where they are."""
        self._own["_init_training_state"](*args, **more)
        self._trainer.state.num_train_epochs = self._epochs
        return 0, 0

    def _call_event(self, event: str, args: Any, state: Any, control: Any, **more: Any) -> Any:
        unseen = hasattr(self, "session") and self.session.in_branch
        if event in ("on_epoch_end", "on_epoch_begin") and self._counts_anew:
            unseen = True
            self._counts_anew = event == "on_epoch_end"
        if not unseen:
            return self._own["call_event"](event, args, state, control, **more)
        hooks = self._trainer.callback_handler.callbacks[0]
        getattr(hooks, event)(args, state, control, **more)
        return control

    # ── events ────────────────────────────────────────────────────────────────────────────────────

    def begin(self, state: Any) -> None:
        """Make the run, once model, optimizer and schedule are there."""
        trainer = self._trainer
        device = trainer.args.device
        generators = rng.read(device)
        state.num_train_epochs = self._epochs or state.num_train_epochs
        optimizer = inner(trainer.optimizer)
        parts: dict[str, Any] = {}
        if self._data is not None:
            parts = {
                "model": ModelPart(trainer.model),
                "optimizer": OptimizerPart(optimizer),
                "scheduler": StatefulPart("the scheduler", trainer.lr_scheduler),
                **self._counters(),
            }
            if trainer.accelerator.scaler is not None:
                parts["scaler"] = StatefulPart("the scaler", trainer.accelerator.scaler)
        held_out = HeldOut.of(
            trainer.model,
            held_out_batches(trainer),
            loss_of_batch(trainer),
            lambda batches: (),
            watched=not self.steers,
        )
        self.session = begin(
            self._choices,
            self._out,
            model=trainer.model,
            optimizers=(optimizer,),
            parts=parts,
            data=self._data,
            lrs=self._lrs,
            held_out=held_out,
            steps=state.max_steps,
            seed=trainer.args.seed,
            on_rewind=self._leave_behind,
        )
        if self._saved is not None:
            self.session.load_state_dict(self._saved)
        elif state.global_step:
            self.session.run.start_at(state.global_step)
        rng.write(generators, device)  # parts that were loaded may have drawn

    def _counters(self) -> dict[str, Any]:
        """Return what the Trainer counts and logs, as parts of its run."""
        return counters_of(self._trainer)

    def step_ended(self, state: Any, control: Any) -> None:
        """Correct the Trainer's epoch after a step, and end it where the data end it."""
        session = self.session
        if self._data is None:
            return
        step = session.current.unfinished
        assert step is not None
        window = self._data.window(step.index)
        state.epoch = self._data.epoch_of(step.index) + window.stop / self._data.length
        # After a short step the Trainer must count its micro-batches anew.
        short = len(window) % self._data.accumulation > 0
        if session.ended_epoch or short:
            control.should_epoch_stop = True
            self._counts_anew = not session.ended_epoch
        if session.in_branch:
            return
        if session.is_last:
            state.max_steps = min(state.max_steps, state.global_step)
        if self._owes_save and session.can_be_saved:
            self._owes_save = False
            control.should_save = True

    def saved(self, state: Any) -> None:
        """Put our state into a checkpoint that the Trainer has just saved."""
        session = self.session
        if not session.can_be_saved:
            self._owes_save = True
            return
        parts = session.stage.trained.parts
        ours = tuple(name for name in parts if name not in _THEIRS)
        folder = Path(self._trainer._get_output_dir(trial=None)) / f"checkpoint-{state.global_step}"
        checkpoint_folders.write(folder, session.state_dict(ours))

    def _leave_behind(self, step: int) -> None:
        checkpoint_folders.leave_behind(Path(self._trainer._get_output_dir(trial=None)), step)


class Hooks(TrainerCallback):
    """Callback of the Trainer that tells an attachment where the Trainer is.

    Args:
        attachment: Attachment.
    """

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Make the run."""
        self._attachment.begin(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin a step of a run that is only watched; others begin where a batch is asked for."""
        if not self._attachment.steers:
            self._attachment.session.boundary()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Put the learning rate in force."""
        self._attachment.session.current.before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Give the schedule its own value back."""
        self._attachment.session.current.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Correct the Trainer's epoch."""
        self._attachment.step_ended(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Add our state to the checkpoint."""
        self._attachment.saved(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """End the run."""
        self._attachment.session.finish()


__all__ = ["Attachment", "attach"]
