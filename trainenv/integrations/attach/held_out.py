"""Held-out data of a run in place: a bounded share of it, and how its loss is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainenv.monitor.probe import evaluating
from trainenv.training.backward import as_loss, mean_loss
from trainenv.training.micro_batches import first_rows, pass_size
from trainenv.types import UserError

_MOST_ROWS = 64  # that the monitor looks at
MOST = 16  # batches: more would cost more than branches do
SHARE = 1 / 200  # of the compute of the run: the most that one evaluation costs
_PROBED = 512  # tokens that the monitor looks at, at least, if a batch has them


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out batches and their loss.

    Attributes:
        batches: Batches; none for a run that is only watched.
        losses: Function that returns the loss of each batch, a scalar tensor, in nats per token.
        loss: Function that returns the loss of one batch, for the probe; None without one.
    """

    batches: Sequence[Any] = ()
    losses: Callable[[Sequence[Any]], Sequence[Tensor]] | None = None
    loss: Callable[[Any], Tensor] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Sequence[Any],
        loss: Callable[[nn.Module, Any], Any] | None,
        in_loop: Callable[[Sequence[Any]], Sequence[Tensor]],
        *,
        watched: bool,
    ) -> HeldOut:
        """Return held-out data whose loss a function computes, or else the loop itself.

        Raises:
            UserError: There are none, and the run is to be steered.
        """
        if not batches and not watched:
            raise UserError(
                "held-out data are needed to tell which change helps, found none; give "
                "validation=[batch, …], or use mode='watch'"
            )
        if loss is None:
            return cls(batches=() if watched else batches, losses=in_loop)
        function = loss
        if isinstance(model, DistributedDataParallel):
            model = model.module  # its forward pass would overwrite buffers of this process

        def of_one(batch: Any) -> Tensor:
            return torch.as_tensor(as_loss(function(model, batch)))

        def of_all(several: Sequence[Any]) -> list[Tensor]:
            with torch.no_grad(), evaluating(model):
                return [of_one(batch) for batch in several]

        return cls(batches=batches, losses=of_all, loss=of_one)

    def within(self, steps: int, size: float | None) -> HeldOut:
        """Return the first of the batches, or rows of the first: an evaluation costs `SHARE`.

        Args:
            steps: Steps of the run.
            size: Tokens or rows of a step; None if not known: then those of the probe.
        """
        if not self.batches:
            return self
        size = size or pass_size(_rows_with(self.batches[0], _PROBED))
        left = 3 * SHARE * steps * size  # a step costs as much as three forward passes
        kept = [_rows_with(self.batches[0], max(left, _PROBED))]
        left -= pass_size(kept[0])
        for batch in self.batches[1:]:
            left -= pass_size(batch)
            if left < 0:
                break
            kept.append(batch)
        return replace(self, batches=kept)

    def evaluate(self) -> float:
        """Return the mean loss over the labelled tokens, nats; NaN without batches."""
        if self.losses is None or not self.batches:
            return float("nan")
        return mean_loss(self.losses(self.batches), self.batches)

    @property
    def probe(self) -> Any:
        """Batch that the monitor measures the model on; None without one."""
        if self.loss is None or not self.batches:
            return None
        return first_rows(_rows_with(self.batches[0], _PROBED), _MOST_ROWS)


def _rows_with(batch: Any, size: float) -> Any:
    """Return the first rows of a batch: as few as have a size, by powers of two, or all."""
    rows = 2
    whole = pass_size(batch)
    while (now := pass_size(first_rows(batch, rows))) < min(size, whole):
        if pass_size(first_rows(batch, 2 * rows)) == now:
            break
        rows *= 2
    return first_rows(batch, rows)


def some_of(batches: Iterable[Any] | None) -> list[Any]:
    """Return the first batches, at most `MOST`."""
    if batches is None:
        return []
    return list(itertools.islice(batches, MOST))
