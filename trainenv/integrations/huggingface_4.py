"""`Attachment4`: a Trainer of transformers 4.57 that is steered.

Its loop is one method, which holds the sum of the losses since the last log in a variable, reads
the length of an epoch from the arguments where the loader has none, and skips trained batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainenv.integrations.huggingface import Attachment
from trainenv.integrations.huggingface_parts import ENDLESS, EpochLength
from trainenv.types import UserError


class RunningLossPart:
    """Sum of the losses since the last log, as a part of a run.

    The Trainer hands it over after each step; until then nothing can be written into it.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._owed = torch.zeros(())  # sum of a resumed run, which the first loss brings along

    def meet(self, total: Tensor) -> None:
        """Take note of the tensor that holds the sum."""
        self._sum = total

    def with_owed(self, loss: Tensor) -> Tensor:
        """Return a loss for the Trainer to add to its sum."""
        if self._sum is not None or not self._owed.any():
            return loss
        owed = self._owed.to(loss.device)
        self._owed = torch.zeros(())
        return loss + owed

    def state(self) -> Any:
        """See `trainenv.integrations.attach.parts.Part`."""
        if self._sum is None:
            return self._owed
        return self._sum.detach()

    def load(self, state: Any) -> None:
        """See `trainenv.integrations.attach.parts.Part`."""
        if self._sum is None:
            self._owed = state.clone()
        else:
            self._sum.copy_(state)


class SavedAsInt(EpochLength):
    """Limit of the steps, whose product with the accumulation is the length of an epoch.

    It is saved with the arguments of the Trainer as the number that it is.
    """

    def __mul__(self, accumulation: int) -> EpochLength:
        return EpochLength.of(0, self._data, self._step)

    def __eq__(self, other: object) -> bool:
        return int(self) == other

    __hash__ = int.__hash__

    def __reduce__(self) -> Any:
        return int, (int(self),)


class EndlessEpoch(int):
    """Steps of an epoch, of which a resumed Trainer finds none behind it: it skips no batches."""

    def __rfloordiv__(self, steps: int) -> int:
        return 0

    def __rmod__(self, steps: int) -> int:
        return 0


class Attachment4(Attachment):
    """A Trainer of transformers 4.57 that is steered; made by `trainenv.attach`."""

    @contextmanager
    def _in_between(self) -> Iterator[None]:
        arguments = self._trainer.args
        if arguments.include_tokens_per_second:
            raise UserError(
                "the Trainer must not go through its data beforehand, found "
                "include_tokens_per_second=True; set it to False, or use transformers 5"
            )
        self._running_loss = RunningLossPart()
        steps = arguments.max_steps
        try:
            with super()._in_between():
                yield
        finally:
            arguments.max_steps = steps

    def _of_version(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        return [(self._trainer, "_maybe_log_save_evaluate", self._after_step)]

    def _after_step(self, total: Tensor, *args: Any, **more: Any) -> None:
        self._running_loss.meet(total)
        self._own["_maybe_log_save_evaluate"](total, *args, **more)

    def _training_step(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Tensor:
        loss = super()._training_step(model, inputs, *args, **more)
        return self._running_loss.with_owed(loss)

    def _initial_values(self, args: Any, dataloader: Any, *more: Any) -> tuple[Any, ...]:
        epochs, _, examples, samples, by_epoch, _, steps = self._own["set_initial_training_values"](
            args, dataloader, *more
        )
        self._epochs = epochs
        assert self._data is not None
        args.max_steps = SavedAsInt.of(
            args.max_steps, self._data, lambda: self.session.current.unfinished
        )
        return ENDLESS, EndlessEpoch(ENDLESS), examples, samples, by_epoch, None, steps

    def _counters(self) -> dict[str, Any]:
        return {**super()._counters(), "running loss": self._running_loss}
