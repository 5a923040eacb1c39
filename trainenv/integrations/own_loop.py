"""`steer`: a training loop of your own, watched or steered.

steer = trainenv.steer(model, optimizer, loader, scheduler=scheduler, out="runs/mine")
for batch in steer:                          # was: for batch in loader
    loss = loss_of(model, batch)
    loss.backward()
    steer.step(loss)                         # was: optimizer.step(); scheduler.step(); …
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainenv.integrations import accelerated
from trainenv.integrations.attach.begin import begin
from trainenv.integrations.attach.data import Data, source_of
from trainenv.integrations.attach.held_out import HeldOut, some_of
from trainenv.integrations.attach.parts import ModelPart, OptimizerPart, Part, StatefulPart
from trainenv.integrations.attach.rates import inner, scheduled_rates
from trainenv.integrations.attach.settings import Choices
from trainenv.loop import Callback
from trainenv.report.run.run_report import RunReport
from trainenv.tools import rng
from trainenv.tools.paths import expanded
from trainenv.types import UserError, as_whole

LossOf = Callable[[nn.Module, Any], Tensor]


def steer(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    loader: Iterable[Any],
    scheduler: Any = None,
    *,
    out: str | Path,
    validation: Iterable[Any] | None = None,
    loss: LossOf | None = None,
    mode: str = "branching",
    epochs: int = 1,
    steps: int | None = None,
    accumulation: int = 1,
    scaler: Any = None,
    also: Sequence[Any] = (),
    resume: bool = False,
    budget: str = "extra",
    max_waste: float = 0.1,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> Steer:
    """Return the batches of a loader for a loop of your own, whose run is watched or steered.

    Args:
        model: Model that is trained.
        optimizer: Optimizer, or a list of them.
        loader: Loader of the training data: a `DataLoader`, a list of batches, or a stream that
            saves its place. A run that is only watched takes any iterable.
        scheduler: Learning-rate scheduler, or a list of them; each is stepped once a step.
        out: Folder to record in.
        validation: Held-out batches; at most 16 are used. Needed unless the run is only watched.
        loss: Function of model and batch that returns the loss, for held-out batches. Without one
            your loop gets them like batches of training, and its gradients are dropped.
        mode: `watch` (nothing changes), `rules` (clip, roll back, skip data, lower the rate) or
            `branching` (changes are tried first).
        epochs: Number of passes over the loader that your loop will make.
        steps: Number of optimizer steps after which the loop ends; None for all of the passes.
        accumulation: Number of batches whose gradients make one step.
        scaler: Gradient scaler of your loop.
        also: Further objects with `state_dict` that training changes, such as averaged weights.
        resume: True to continue an interrupted run from the records in `out`.
        budget: `extra` to train branches on top of the steps, `included` to take them off.
        max_waste: Largest share of the steps that is wasted on branches.
        seed: Random seed of the order after data were shuffled anew.
        config: Further settings by section of `trainenv.TrainingConfig`.
        callback: Callback that steers instead of the mode's own.

    Raises:
        UserError: The run cannot be steered as asked; the sentence says what to change.
    """
    choices = Choices(
        mode=mode, budget=budget, max_waste=max_waste, config=config, callback=callback
    )
    return Steer(
        choices,
        model,
        _listed(optimizer),
        loader,
        _listed(scheduler),
        out=expanded(out),
        validation=validation,
        loss=loss,
        epochs=as_whole(epochs, "epochs", least=1),
        steps=steps,
        accumulation=as_whole(accumulation, "accumulation", least=1),
        scaler=scaler,
        also=also,
        resume=resume,
        seed=seed,
    )


class Steer:
    """Batches of a loop of your own; made by `steer`.

    Attributes:
        statement: Upper bound on the cost of the mode, in a sentence.
        run: The run: its step, its interventions, its ledger.
        kept: True if the batch at hand belongs to the run, and not to a branch or to held-out data.
    """

    def __init__(
        self,
        choices: Choices,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        loader: Iterable[Any],
        schedulers: Sequence[Any],
        *,
        out: Path,
        validation: Iterable[Any] | None,
        loss: LossOf | None,
        epochs: int,
        steps: int | None,
        accumulation: int,
        scaler: Any,
        also: Sequence[Any],
        resume: bool,
        seed: int,
    ) -> None:
        _check(model, optimizers, schedulers)
        device = optimizers[0].param_groups[0]["params"][0].device
        generators = rng.read(device)
        watched = not choices.steers
        accumulation = accelerated.accumulation_of(loader, accumulation)
        self._prepared = accelerated.prepared(loader, optimizers, steered=not watched)
        data = None
        if not watched:
            most = None if steps is None else steps * accumulation
            prepared = self._prepared
            data = Data(
                prepared.source if prepared else source_of(loader, steps=most, device=device),
                accumulation=accumulation,
                ahead=self._prepared is not None,
                device=device,
            )
        total = _steps(loader, epochs, steps, accumulation)
        held_out = HeldOut.of(model, some_of(validation), loss, self._in_loop, watched=watched)
        accelerated.end_held_out(validation)
        self._scaled = accelerated.scaler_of(optimizers) if scaler is None else scaler
        inner_optimizers = [inner(one) for one in optimizers]
        parts: dict[str, Part] = {}
        if data is not None:
            parts = {"model": ModelPart(model)}
            parts |= {
                f"optimizer {n}": OptimizerPart(one) for n, one in enumerate(inner_optimizers)
            }
            named = {f"scheduler {n}": one for n, one in enumerate(schedulers)}
            named |= {} if self._scaled is None else {"the scaler": self._scaled}
            named |= {f"also[{n}]": one for n, one in enumerate(also)}
            parts |= {name: StatefulPart(name, one) for name, one in named.items()}
        self._session = begin(
            choices,
            out,
            model=model,
            optimizers=inner_optimizers,
            parts=parts,
            data=data,
            lrs=scheduled_rates(schedulers, optimizers[0], total),
            held_out=held_out,
            steps=total,
            seed=seed,
            from_folder=resume,
        )
        self._optimizers = optimizers
        self._schedulers = schedulers
        self._scaler = scaler
        self._loader = loader
        self._data = data
        self._accumulation = accumulation
        self._epochs = epochs
        self._passes = 0
        self._left = 0  # micro-batches of the step under way that are still to come
        self._batch: Any = None
        rng.write(generators, device)  # parts that were loaded may have drawn

    @property
    def statement(self) -> str:
        """Upper bound on the cost of the mode, in a sentence."""
        return self._session.statement

    @property
    def run(self) -> Any:
        """The run, for its step, its interventions and its ledger."""
        return self._session.run

    @property
    def kept(self) -> bool:
        """True if the batch at hand belongs to the run: log nothing while it is false."""
        return self._session.held_out is None and not self._session.in_branch

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one pass, and between them those of branches."""
        self._passes += 1
        if self._data is None:
            yield from self._watched()
            return
        if self._prepared is None:
            yield from self._steered()
            return
        self._prepared.begin_pass()
        yield from self._steered()
        self._prepared.end_pass()

    def _steered(self) -> Iterator[Any]:
        """Yield the batches of one pass by position, and between them those of branches."""
        data = self._data
        assert data is not None
        while not self._session.has_ended():
            index = self._session.boundary()
            if index is None:
                self._announce(ends_step=True, ends_pass=False)
                yield self._session.held_out
                continue
            if self._session.has_ended():
                return
            window = data.window(index)
            self._left = len(window)
            epoch = data.epoch_of(index)
            for place in window:
                self._batch = data.fetch(epoch, place)
                last = place + 1
                self._announce(ends_step=last == window.stop, ends_pass=last == data.length)
                yield self._batch
            if self._left:
                raise UserError(
                    "expected a call of steer.step(loss) after each batch, found one without; "
                    "call it once in the body of the loop"
                )
            if self._pass_ends(epoch):
                return

    def _announce(self, *, ends_step: bool, ends_pass: bool) -> None:
        """Let Accelerate know of a batch, if it has prepared the loop."""
        if self._prepared is not None:
            self._prepared.before_batch(ends_step=ends_step, ends_pass=ends_pass)

    def _pass_ends(self, epoch: int) -> bool:
        """Tell if the step that was just trained ends the pass.

        The last pass ends with the budget: it may need more batches than are left of its epoch,
        if some were skipped, and after the last step the program may still go back.
        """
        session = self._session
        if session.in_branch or self._passes >= self._epochs:
            return False
        return session.ended_epoch and epoch >= self._passes - 1

    def _watched(self) -> Iterator[Any]:
        """Yield the batches of one pass as the loader hands them out."""
        session = self._session
        length = length_of(self._loader)
        for place, batch in enumerate(self._loader):
            if place % self._accumulation == 0:
                session.boundary()
                self._left = int(min(self._accumulation, length - place))
            self._batch = batch
            yield batch
            if session.is_last and not self._left:
                session.finish()
                return

    def step(self, loss: Tensor) -> bool:
        """Take the optimizer's step; with accumulation only after the last batch of it.

        Args:
            loss: Loss of the batch, not divided by the accumulation. Its gradients are computed.

        Returns:
            True if the weights were updated.
        """
        session = self._session
        if session.held_out is not None:
            session.answer = loss.detach()
            self._zero_grad()
            return False
        session.current.count(self._batch)
        session.current.add_loss(loss / self._accumulation)
        self._left -= 1
        if self._left:
            accelerated.step_between(self._schedulers)
            return False
        self._update()
        return True

    def _update(self) -> None:
        run = self._session.current
        if self._scaled is not None:
            for optimizer in self._optimizers:
                with suppress(RuntimeError):  # your loop has done so already
                    self._scaled.unscale_(inner(optimizer))
        run.clip_gradients()
        run.before_update()
        for optimizer in self._optimizers:
            if self._scaler is None:
                optimizer.step()
            else:
                self._scaler.step(optimizer)
        if self._scaler is not None:
            self._scaler.update()
        run.after_update()
        for scheduler in self._schedulers:
            scheduler.step()
        self._zero_grad()

    def _zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def _in_loop(self, batches: Sequence[Any]) -> list[Tensor]:
        return self._session.losses_in_loop(batches)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """End the run: needed only where your loop ends before its last step."""
        self._session.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._session.finish()
        else:
            self._session.close()

    def report(self) -> RunReport:
        """Return the report of the run."""
        return RunReport(self._session.out)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    return [value]


def _check(model: object, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be a module of torch, found {type(model).__name__}")
    for one in optimizers:
        if not (hasattr(one, "param_groups") and hasattr(one, "state_dict")):
            raise UserError(
                "an optimizer must have param_groups and state_dict(), to be restored, found "
                f"{type(one).__name__}; give one that is made like those of torch"
            )
    if not optimizers:
        raise UserError("expected an optimizer, found none; give the one of your loop")
    for one in schedulers:
        if isinstance(one, ReduceLROnPlateau):
            raise UserError(
                "a scheduler must be one that is stepped after each step, found "
                "ReduceLROnPlateau; give it as also=[scheduler], and step it yourself"
            )


def _steps(loader: Any, epochs: int, steps: int | None, accumulation: int) -> int:
    if steps is not None:
        return as_whole(steps, "steps", least=1)
    length = length_of(loader)
    if length == math.inf:
        raise UserError(
            f"steps must be given for a loader without a length, found {type(loader).__name__}; "
            "give the number of optimizer steps"
        )
    return epochs * -(-int(length) // accumulation)


def length_of(loader: Any) -> float:
    """Return the number of batches of a loader; infinity if it does not know."""
    try:
        return len(loader)
    except TypeError:
        return math.inf
