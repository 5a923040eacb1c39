"""Knowledge about Accelerate: what `accelerator.prepare` makes of loaders, optimizers, schedulers.

    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    steer = trainenv.steer(model, optimizer, loader, scheduler, out="mine", validation=held_out)
    for batch in steer:                          # was: for batch in loader
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            steer.step(loss)                     # was: optimizer.step(); scheduler.step(); …

Accelerate counts batches to know when gradients are complete. It cannot know which of them belong
to a branch, so each step ends as the last one of an epoch does: its count begins anew after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainenv.integrations.attach.data import LoaderSource, Source, source_of
from trainenv.types import UserError

_NOT_WHOLE = ("DEEPSPEED", "FSDP", "MEGATRON_LM")


class Prepared:
    """A loader that Accelerate has prepared, and the optimizers and schedulers with it.

    Accelerate fetches one batch ahead, to know which is the last: so does `Data` in its place.

    Args:
        loader: Loader.
        optimizers: Optimizers, wrapped.

    Attributes:
        source: Batches of the loader by position.

    Raises:
        UserError: The loader cannot be gone through by position; the sentence says why.
    """

    def __init__(self, loader: Any, optimizers: Sequence[Any]) -> None:
        self._loader = loader
        self._remainder = -1
        _check(loader, optimizers)
        self.source: Source = _source(loader)

    def begin_pass(self) -> None:
        """Begin a pass over the loader, as its own iterator does."""
        self._loader.begin()
        self._remainder = self._loader.remainder

    def before_batch(self, *, ends_step: bool, ends_pass: bool) -> None:
        """Let Accelerate know, before it counts a batch, if its gradients complete a step.

        Args:
            ends_step: True if the batch is the last one of a step.
            ends_pass: True if it is the last one of an epoch.
        """
        self._loader.end_of_dataloader = ends_step
        self._loader.remainder = self._remainder if ends_pass else -1

    def end_pass(self) -> None:
        """End a pass over the loader."""
        self._loader.iteration += 1
        self._loader.end()


def step_between(schedulers: Sequence[Any]) -> None:
    """Let wrapped schedulers count a batch that does not end a step."""
    for scheduler in schedulers:
        if _is_wrapped(scheduler):
            scheduler.step()


def accumulation_of(loader: Any, given: int) -> int:
    """Return the micro-batches of a step: those of the Accelerator, if it has prepared the loader.

    Raises:
        UserError: Another number is given.
    """
    state = getattr(loader, "gradient_state", None)
    if state is None:
        return given
    if given not in (1, state.num_steps):
        raise UserError(
            f"accumulation must be that of the Accelerator, {state.num_steps}, found {given}; "
            "give gradient_accumulation_steps to the Accelerator alone"
        )
    return int(state.num_steps)


def prepared(loader: Any, optimizers: Sequence[Any], *, steered: bool) -> Prepared | None:
    """Return what Accelerate has prepared; None for a loop without it, or one that is only watched.

    Args:
        loader: Loader.
        optimizers: Optimizers.
        steered: True if branches are to be trained.

    Raises:
        UserError: The loop cannot be steered; the sentence says why.
    """
    for optimizer in optimizers:
        if _is_wrapped(optimizer):
            _check_whole(optimizer.accelerator_state, steered=steered)
    if not steered:
        return None
    if hasattr(loader, "gradient_state") and hasattr(loader, "base_dataloader"):
        return Prepared(loader, optimizers)
    if any(_is_wrapped(one) for one in optimizers) and not isinstance(loader, list):
        raise UserError(
            "the loader must be prepared with the optimizer, so that it counts its batches, found "
            f"{type(loader).__name__}; give it to accelerator.prepare too"
        )
    return None


def end_held_out(loader: Any) -> None:
    """Take a loader of held-out data off Accelerate's list of those that are being iterated."""
    if hasattr(loader, "gradient_state") and hasattr(loader, "end"):
        loader.end()


def scaler_of(optimizers: Sequence[Any]) -> Any:
    """Return the gradient scaler of wrapped optimizers; None without one."""
    for optimizer in optimizers:
        if _is_wrapped(optimizer) and optimizer.scaler is not None:
            return optimizer.scaler
    return None


def _is_wrapped(thing: Any) -> bool:
    return type(thing).__name__ in ("AcceleratedOptimizer", "AcceleratedScheduler")


def _check_whole(state: Any, *, steered: bool) -> None:
    kind = str(state.distributed_type).rpartition(".")[2]
    if kind in _NOT_WHOLE:
        raise UserError(
            "the weights must be whole in one process, to be captured and restored, found "
            f"{kind}; train without it"
        )
    if steered and state.num_processes > 1:
        raise UserError(
            f"steering needs a single process, found {state.num_processes}; start one, or use "
            "mode='watch'"
        )


def _check(loader: Any, optimizers: Sequence[Any]) -> None:
    if not all(_is_wrapped(one) for one in optimizers):
        raise UserError(
            "the optimizer must be prepared with the loader, so that both count the batches "
            f"alike, found {type(optimizers[0]).__name__}; give it to accelerator.prepare too"
        )
    if type(loader).__name__ != "DataLoaderShard":
        raise UserError(
            "the loader must not be handed out by one process to the others, found "
            f"{type(loader).__name__}; set dispatch_batches=False, or use mode='watch'"
        )
    if not loader.gradient_state.sync_with_dataloader:
        raise UserError(
            "the gradients must be complete at the end of an epoch, found "
            "sync_with_dataloader=False; leave it True, or use mode='watch'"
        )
    skipped = loader.skip_batches or getattr(loader.batch_sampler, "skip_batches", 0)
    if skipped:
        raise UserError(
            "the loader must begin at its first batch, to go back to it, found one that skips "
            f"{skipped}; give it whole, and use resume=True to continue a run"
        )


def _source(loader: Any) -> Source:
    from accelerate.utils import send_to_device

    base = loader.base_dataloader
    source_of(base)  # its sentences

    def place(batch: Any) -> Any:
        if loader.device is None:
            return batch
        return send_to_device(batch, loader.device, non_blocking=loader._non_blocking)

    return LoaderSource(base, place=place, counted=True)
