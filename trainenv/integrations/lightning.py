"""`Steer`: a callback of Lightning by which a training is watched or steered.

    steer = trainenv.integrations.lightning.Steer(out="runs/mine")
    Trainer(max_steps=N, callbacks=[steer]).fit(module, loader, held_out)

Lightning's loop trains the branches too. While it does, other callbacks are not called, and nothing
is logged, saved or evaluated. Its checkpoints hold our state and are resumed as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback as LightningCallback

from trainenv.integrations.attach import processes
from trainenv.integrations.attach.begin import begin
from trainenv.integrations.attach.data import Data
from trainenv.integrations.attach.held_out import HeldOut
from trainenv.integrations.attach.parts import ModelPart, OptimizerPart
from trainenv.integrations.attach.rates import scheduled_rates
from trainenv.integrations.attach.session import Session
from trainenv.integrations.attach.settings import Choices
from trainenv.integrations.lightning_parts import (
    Fetcher,
    OrderedSource,
    check,
    held_out_batches,
    is_theirs,
    leave_behind,
    loader_of,
    loss_of_batch,
    parts_of,
    steps_of,
    unseen,
)
from trainenv.loop import Callback
from trainenv.report.run.run_report import RunReport
from trainenv.tools import rng
from trainenv.tools.paths import expanded


class Steer(LightningCallback):
    """Watch or steer a training of Lightning.

    Args:
        out: Folder to record in, for `trainenv report`.
        mode: `watch` (nothing changes), `rules` (clip, roll back, skip data, lower the rate) or
            `branching` (changes are tried first).
        validation: Held-out batches, at most 16 are used; None for those of the validation loader.
            Their loss is the one of `training_step`.
        budget: `extra` to train branches on top of the steps, `included` to take them off.
        max_waste: Largest share of the steps that is wasted on branches.
        seed: Random seed of the order after data were shuffled anew.
        config: Further settings by section of `trainenv.TrainingConfig`.
        callback: Callback of ours that steers instead of the mode's own.

    Attributes:
        session: Run in place and its program; there once training has begun.

    Raises:
        UserError: When training begins: it cannot be steered as asked.
    """

    session: Session

    def __init__(
        self,
        out: str | Path,
        *,
        mode: str = "branching",
        validation: Iterable[Any] | None = None,
        budget: str = "extra",
        max_waste: float = 0.1,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
    ) -> None:
        self._out = expanded(out)
        self._validation = validation
        self._choices = Choices(
            mode=mode, budget=budget, max_waste=max_waste, config=config, callback=callback
        )
        self._seed = seed
        self._data: Data | None = None
        self._ahead: list[tuple[int, int]] = []  # epoch and place of the batches of this step
        self._saved: Mapping[str, Any] | None = None
        self._limits: tuple[int, int] = (0, 0)
        self._written: list[tuple[int, str]] = []  # step and path of each checkpoint

    @property
    def statement(self) -> str:
        """Upper bound on the cost of the mode, in a sentence; known once training has begun."""
        return self.session.statement

    def report(self) -> RunReport:
        """Return the report of the run, as this process has recorded it."""
        return RunReport(processes.own(self._out))

    # ── begin and end ─────────────────────────────────────────────────────────────────────────────

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the run, once loader, model, optimizer and schedule are there."""
        check(trainer, steers=self._choices.steers)
        with rng.unchanged(trainer.strategy.root_device):
            self.session = self._session(trainer, pl_module)
        if self._saved is not None:
            self.session.load_state_dict(self._saved)
        elif trainer.global_step:
            self.session.run.start_at(trainer.global_step)
        self._stand_before(trainer)

    def _session(self, trainer: Any, module: Any) -> Session:
        optimizer = trainer.optimizers[0]
        steers = self._choices.steers
        held_out = HeldOut.of(
            module,
            held_out_batches(trainer, self._validation),
            loss_of_batch(trainer),
            lambda batches: (),
            watched=not steers,
        )
        parts: dict[str, Any] = {}
        if steers:
            self._data = Data(
                OrderedSource(loader_of(trainer), int(trainer.num_training_batches)),
                accumulation=trainer.accumulate_grad_batches,
                ahead=False,
                device=trainer.strategy.root_device,
            )
            parts = {
                "model": ModelPart(module),
                "optimizer": OptimizerPart(optimizer),
                **parts_of(trainer, self),
            }
        steps = steps_of(trainer)
        done = trainer.global_step
        configs = [one for one in trainer.lr_scheduler_configs if one.interval == "step"]
        ahead = scheduled_rates([one.scheduler for one in configs], optimizer, steps - done)
        return begin(
            self._choices,
            self._out,
            model=module,
            optimizers=(optimizer,),
            parts=parts,
            data=self._data,
            lrs=ahead[:1] * done + ahead,
            held_out=held_out,
            steps=steps,
            seed=self._seed,
            on_rewind=self._leave_behind,
        )

    def _stand_before(self, trainer: Any) -> None:
        """Stand before methods of Lightning's loops until the training ends."""
        loop = trainer.fit_loop.epoch_loop
        self._trainer = trainer
        self._own_run = loop.automatic_optimization.run
        loop.automatic_optimization.run = self._run
        if self._data is None:
            return
        self._own_advance = loop.advance
        loop.advance = self._advance
        self._own_save = trainer.save_checkpoint
        trainer.save_checkpoint = self._save
        fit = trainer.fit_loop
        fit._data_fetcher = Fetcher(fit._data_fetcher, self._next_batch)
        # If batches are skipped, the last epoch ends before the budget: the steps end the run.
        self._limits = (fit.max_epochs, loop.max_steps)
        loop.max_steps = self.session.run.horizon.end
        fit.max_epochs = -1

    def _step_aside(self) -> None:
        loop = self._trainer.fit_loop.epoch_loop
        vars(loop.automatic_optimization).pop("run", None)
        if vars(loop).pop("advance", None) is not None:
            self._trainer.fit_loop.max_epochs, loop.max_steps = self._limits
            del self._trainer.save_checkpoint

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the run."""
        self.session.finish()
        self._step_aside()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the run up; it can be resumed."""
        if hasattr(self, "session"):
            self.session.close()
            self._step_aside()

    # ── a step ────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, fetcher: Any) -> None:
        """Train a micro-batch; before the first one of a step, those of branches."""
        if not self._ahead:
            self._begin_step()
            while self.session.in_branch:
                with unseen(self._trainer, self):
                    while self._ahead:
                        self._own_advance(fetcher)
                self._begin_step()
        self._own_advance(fetcher)

    def _begin_step(self) -> None:
        """Let the program act; then count the batches as they lie in their epoch."""
        index = self.session.boundary()
        data = self._data
        assert index is not None
        assert data is not None
        window = data.window(index)
        self._ahead = [(data.epoch_of(index), place) for place in window]
        progress = self._trainer.fit_loop.epoch_loop.batch_progress.current
        for name in vars(progress):
            setattr(progress, name, window.start)

    def _next_batch(self) -> Any:
        assert self._data is not None
        epoch, place = self._ahead.pop(0)
        fetcher = self._trainer.fit_loop._data_fetcher
        fetcher.fetched = place + 1
        fetcher.done = place + 1 == self._data.length
        return self._data.fetch(epoch, place)

    def _run(self, optimizer: Any, batch_idx: int, kwargs: Mapping[str, Any]) -> Any:
        run = self.session.current
        if self._data is not None:
            run.count(kwargs["batch"])
        outputs = self._own_run(optimizer, batch_idx, kwargs)
        if "loss" in outputs:
            run.add_loss(outputs["loss"])
        if not self._trainer.fit_loop._should_accumulate():
            run.after_update()
        return outputs

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin a step of a run that is only watched."""
        if self._data is None:
            run = self.session.run
            if run.unfinished is None or run.unfinished.complete:
                self.session.boundary()
            self.session.current.count(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Clip, and put the learning rate in force."""
        self.session.current.clip_gradients()
        self.session.current.before_update()

    # ── a checkpoint of Lightning ─────────────────────────────────────────────────────────────────

    def _save(self, filepath: Any, *args: Any, **more: Any) -> None:
        self._written.append((self._trainer.global_step, str(filepath)))
        self._own_save(filepath, *args, **more)

    def _leave_behind(self, step: int) -> None:
        """Mark what was written after a step: the run has gone back to it."""
        leave_behind(self._trainer, [path for at, path in self._written if at > step])
        self._written = [(at, path) for at, path in self._written if at <= step]

    def state_dict(self) -> dict[str, Any]:
        """Return our state for a checkpoint of Lightning; a mark in the midst of a decision."""
        if not hasattr(self, "session") or not self.session.has_begun:
            return {}
        state = self.session.mark()
        if self.session.can_be_saved:
            parts = self.session.stage.trained.parts
            state = self.session.state_dict(tuple(name for name in parts if not is_theirs(name)))
        return {"written": list(self._written), **state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint of Lightning; takes effect when training begins."""
        self._saved = state_dict
        self._written = [(at, path) for at, path in state_dict["written"]]
