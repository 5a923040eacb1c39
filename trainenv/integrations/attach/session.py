"""`Session`: a framework's loop and the program that steers it, in turn in one thread.

The framework's loop is one greenlet and `trainenv.train` another. `advance(n)` of the run lets the
framework train n steps and comes back. So what steers reads like a plain loop, while loss,
accumulation, autocast and wrappers stay the framework's.

An adapter calls, in this order:

    ┌─► boundary()          the framework asks for the first micro-batch of a step
    │   add_loss(…)         for each micro-batch
    │   clip_gradients()    before the framework clips
    │   before_update(), after_update()          around the step of the optimizers
    └── ended_epoch         after it: true where the framework's epoch should end
    finish()                the framework has trained its last step
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainenv.composition.tracked import train
from trainenv.integrations.attach import processes
from trainenv.integrations.attach.run import InPlaceRun
from trainenv.integrations.attach.settings import Settings
from trainenv.integrations.attach.stage import Stage, Trained
from trainenv.loop import Callback, resume
from trainenv.monitor.probe import evaluating
from trainenv.records.run_folder import RunFolder
from trainenv.tools import rng
from trainenv.tools.json_lines import plain
from trainenv.types import Event, UserError


class Session:
    """A run in place, its program and its records.

    Args:
        trained: Model, optimizers and data of the framework.
        settings: Settings of the run.
        out: Folder to record in.
        on_rewind: Function that learns the step that the run has gone back to.
        from_folder: True to continue from the newest checkpoint in the folder.

    Attributes:
        out: Folder of the records.
        run: Main run.
        callback: Callback that steers it; None for a run that is only watched.
        held_out: Held-out batch whose loss the framework's loop is to compute; None without one.
        answer: Loss that it has computed.
    """

    def __init__(
        self,
        trained: Trained,
        settings: Settings,
        out: Path,
        *,
        on_rewind: Callable[[int], None] = lambda step: None,
        from_folder: bool = False,
    ) -> None:
        parameters = [
            p for one in trained.optimizers for group in one.param_groups for p in group["params"]
        ]
        device = parameters[0].device
        self.settings = settings
        self.stage = Stage(
            trained=trained,
            device=device,
            train_one=self._train_one,
            on_rewind=self._rewound,
            generators=rng.read(device),
        )
        self.run = InPlaceRun(self.stage, settings.config, parameters)
        self.callback: Callback | None = settings.callback()
        self.statement = settings.statement(self.run)
        self.out = out
        self._from_folder = from_folder
        self._on_rewind = on_rewind
        self._folder: RunFolder | None = None
        self._program: Any = None
        self._framework: Any = None
        self._saved: Mapping[str, Any] | None = None
        self.held_out: Any = None
        self.answer: Tensor | None = None

    # ── what the adapter asks ─────────────────────────────────────────────────────────────────────

    @property
    def current(self) -> InPlaceRun:
        """Run on the stage."""
        assert self.stage.current is not None
        return self.stage.current

    @property
    def in_branch(self) -> bool:
        """True while the framework trains a branch, of which nobody else should know."""
        return self.current is not self.run

    def is_over(self) -> bool:
        """Tell if the program has ended, so that nothing is steered any more."""
        return self._program is not None and bool(self._program.dead)

    def has_ended(self) -> bool:
        """Tell if the program has ended because the budget is spent."""
        return self.is_over() and self.run.done

    @property
    def ended_epoch(self) -> bool:
        """True if the step that was just trained is the last one of its epoch."""
        data = self.stage.trained.data
        run = self.current
        if data is None or run.unfinished is None:
            return False
        following = run._order.index(run.step + 1)
        return data.epoch_of(following) != data.epoch_of(run.unfinished.index)

    @property
    def is_last(self) -> bool:
        """True if the step that was just trained is the last one of the budget."""
        return not self.in_branch and self.run.step + 1 >= self.run.horizon.end

    # ── turns ─────────────────────────────────────────────────────────────────────────────────────

    def boundary(self) -> int | None:
        """Let the program act between two steps, and begin the next one.

        Returns:
            Data index of the next step; None if the loop is to compute a loss on `held_out`.
        """
        self._switch()
        if self.is_over() and self.run.unfinished is not None and self.run.unfinished.complete:
            self.run.advance(1)  # takes in the step, for the schedule and the order alone
        if self.held_out is not None:
            return None
        return self.current.begin_step()

    def losses_in_loop(self, batches: Sequence[Any]) -> list[Tensor]:
        """Return the losses that the framework's own loop computes on held-out batches.

        Called by the run, inside the program. The loop gets the batches like those of training;
        the adapter takes its losses and drops its gradients.
        """
        if self.stage.sealed:  # there is no loop any more
            return [torch.full((), float("nan")) for _ in batches]
        generators = self.stage.generators
        losses = []
        with evaluating(self.run.model):
            for batch in batches:
                self.held_out = batch
                self._framework.switch()
                assert self.answer is not None
                losses.append(self.answer)
        self.held_out = None
        self.stage.generators = generators
        return losses

    def finish(self) -> None:
        """End the run here: the framework trains no further step."""
        step = self.run.unfinished
        if self.is_over() or self._program is None:
            return
        if self.in_branch or step is None or not step.complete:
            self.close()
            return
        self.stage.sealed = True
        self._switch()

    def close(self) -> None:
        """Give up a run that the framework has broken off; it can be resumed."""
        self.stage.rates.give_back()
        if self._program is None or self._program.dead:
            return
        import greenlet

        self.stage.generators = rng.read(self.stage.device)
        self._program.parent = greenlet.getcurrent()
        self._program.throw()
        self.stage.enter(self.run)
        rng.write(self.stage.generators, self.stage.device)

    def _switch(self) -> None:
        """Give control to the program until it wants a step or has ended."""
        import greenlet

        if self.is_over():
            return
        device = self.stage.device
        gradients = torch.is_grad_enabled()
        self._framework = greenlet.getcurrent()
        self.stage.generators = rng.read(device)
        if self._program is None:
            self._program = greenlet.greenlet(self._steer)
        self._program.parent = self._framework
        try:
            self._program.switch()
        finally:
            if self.is_over():
                self.stage.enter(self.run)
            rng.write(self.stage.generators, device)
            torch.set_grad_enabled(gradients)

    def _train_one(self) -> None:
        """Let the framework train a step; called by the run, inside the program."""
        if self._is_sealed():
            raise UserError("the framework has ended its training, so that no step can follow")
        self._framework.switch()
        if self._is_sealed():
            self.run.end_here()

    def _is_sealed(self) -> bool:
        return self.stage.sealed

    def _steer(self) -> None:
        """Train the run to its end: the program."""
        folder = self._open()
        self._folder = folder
        try:
            train(self.run, folder, callback=self.callback, watch=self._acted)
        finally:
            folder.telemetry.flush()

    def _acted(self, run: Any, window: Any) -> None:
        self.run.deciding = False

    def _open(self) -> RunFolder:
        if self._from_folder:
            folder, _ = resume(self.out, self.run, self.callback)
            return folder
        if self._saved is None:
            if self.out.is_dir() and any(self.out.iterdir()):
                raise UserError(
                    f"out must be a new folder or an empty one, found files in {self.out}; give "
                    "another, or resume the run in it from its checkpoint"
                )
            return RunFolder.create(self.out, self.run.config)
        if "parts" not in self._saved:
            at_most = self._saved["step"]
            folder, _ = resume(self.out, self.run, self.callback, at_most=at_most)
            return folder
        folder = RunFolder.continued(self.out, rewinds=self._saved["rewinds"])
        self._resume(self._saved)
        return folder

    def _rewound(self, step: int) -> None:
        if self.current is self.run:
            self._on_rewind(step)

    # ── a checkpoint of the framework ─────────────────────────────────────────────────────────────

    @property
    def has_begun(self) -> bool:
        """True once the records of the run are there."""
        return self._folder is not None

    @property
    def can_be_saved(self) -> bool:
        """True where a checkpoint can be resumed from: at steps that no decision is taken at."""
        return self.has_begun and not self.in_branch and not self.run.deciding

    def state_dict(self, names: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return the state that belongs into a checkpoint of the framework.

        Args:
            names: Names of the live parts that the framework does not save itself; None for all.
        """
        assert self._folder is not None
        self._folder.telemetry.flush()
        self.stage.generators = rng.read(self.stage.device)
        parts = self.stage.state()
        if names is not None:
            parts = {name: parts[name] for name in (*names, "generators") if name in parts}
        callback = None
        if self.callback is not None:
            callback = json.dumps(plain(self.callback.state_dict()))
        return {
            "step": self.run.step,
            "parts": parts,
            "run": self.run.light_state(),
            "ledger": self.run.ledger.as_dict(),
            "callback": callback,
            "rewinds": self._folder.rewinds,
            "mode": self.settings.mode,
            "process": processes.rank(),
        }

    def mark(self) -> dict[str, Any]:
        """Return a mark for a checkpoint of the framework where `can_be_saved` is false.

        A run that resumes from it goes back to the newest state in the folder from before, and
        takes the decision again.
        """
        return {"step": self.run.step, "mode": self.settings.mode}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` or `mark` returned; takes effect when training begins.

        Raises:
            UserError: It is the state of another mode.
        """
        if state.get("mode") != self.settings.mode:
            raise UserError(
                f"the checkpoint was written with mode={state.get('mode')!r}, found "
                f"mode={self.settings.mode!r}; resume it with the mode that it had"
            )
        self._saved = state

    def _resume(self, saved: Mapping[str, Any]) -> None:
        run = self.run
        run.take_on(saved["step"], saved["run"])
        run.ledger.load(saved["ledger"])
        for name, part in saved["parts"].items():
            if name == "generators":
                if saved.get("process", 0) != processes.rank():
                    continue  # a checkpoint that process 0 alone has written
                self.stage.generators = rng.from_tensors(part)
            elif name in self.stage.trained.parts:
                self.stage.trained.parts[name].load(part)
        if self.callback is not None and saved["callback"] is not None:
            self.callback.load_state_dict(json.loads(saved["callback"]))

    def event(self, event: Event) -> None:
        """Record an event."""
        if self._folder is not None:
            self._folder.event(event)
