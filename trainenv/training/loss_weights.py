"""Weights of the micro-batches of a step, whose losses add up to one mean over labelled tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainenv.distributed.processes import Processes
from trainenv.training.micro_batches import host_reads_are_free, labelled, pass_size, share_of
from trainenv.types import LossSum, UserError


class MeanWeights:
    """Weights of micro-batches with mean losses; their labels are counted in the data.

    Equal weights give the same bits as a mean over micro-batches.
    """

    def __init__(self, micro_batches: Sequence[Any], apart: bool, processes: Processes) -> None:
        size = processes.size
        # Of all shares at once, in every process: so all know the labels of the whole batch.
        every = labelled(
            [share_of(micro, rank, size) for micro in micro_batches for rank in range(size)]
        )
        self._counts = every[processes.rank :: size]
        self._apart = apart
        self._processes = processes
        self._parts = list[Tensor]()
        self._alive: list[bool | Tensor] = []
        self.tokens: float | Tensor = sum(every)
        if size > 1:
            _check_shares(every)

    def part(self, place: int, loss: Tensor) -> tuple[Tensor, bool | Tensor]:
        """Return the value to propagate for a micro-batch, and whether it contributes at all."""
        if isinstance(self.tokens, Tensor) and host_reads_are_free(loss):
            self._counts = [int(count) for count in self._counts]
            self.tokens = int(self.tokens)
        count = self._counts[place]
        total = self.tokens
        many = len(self._counts)
        if isinstance(total, Tensor):
            total = total.to(loss.device)
            count = torch.as_tensor(count, device=loss.device)
            alive: bool | Tensor = torch.where(total > 0, count > 0, loss.isfinite())
            weights = many * self._processes.size * count.double()
            ratio = torch.where(total > 0, weights / total.clamp_min(1), 1.0)
            one = many * self._processes.size == 1
            part = loss if one else loss * ratio.to(loss.dtype)
        else:
            # Without any label that we know of, the objective has others if its loss is a number.
            alive = count > 0 if total else loss.detach().isfinite()
            alive = (
                bool(alive) if isinstance(alive, Tensor) and host_reads_are_free(alive) else alive
            )
            weight = many * self._processes.size * count
            part = loss if not total or weight == total else loss * (weight / total)
        if self._processes.size > 1:
            alive = True  # or no process could end its part of a reduction
        self._alive.append(alive)
        self._parts.append(_selected(part.detach(), alive) if many > 1 else part.detach())
        return part if many == 1 or self._apart else part / many, alive

    @property
    def known(self) -> bool | Tensor:
        """See `Pass`."""
        if self._processes.size > 1 and not self.tokens:
            lost = (~torch.stack(self._parts).isfinite()).sum().float()
            return not bool(self._processes.total(lost))
        return _any(self._alive)

    @property
    def factor(self) -> float | Tensor | None:
        """Return the factor on the gradients after the last micro-batch."""
        if self._apart:
            return _share_alive(self._alive)
        return None

    @property
    def mean(self) -> Tensor:
        """Mean over all labelled tokens."""
        mean = self._parts[0]
        if len(self._parts) > 1:
            mean = _where(self.known, torch.stack(self._parts).mean())
        size = self._processes.size
        if size > 1:
            return self._processes.total(mean) / size
        return mean


class SumWeights:
    """Weights of micro-batches with summed losses; their tokens are counted along the way.

    Until the last one was seen, gradients are divided by the tokens in the data, so that they have
    a usual size for fp16.
    """

    def __init__(self, micro_batches: Sequence[Any], apart: bool, processes: Processes) -> None:
        self._many = len(micro_batches)
        self._apart = apart
        self._processes = processes
        self._complete = processes.size == 1
        self._guess = sum(pass_size(micro) for micro in micro_batches)
        self._totals = list[Tensor]()
        self._counts = list[float | Tensor]()

    def part(self, place: int, loss: LossSum) -> tuple[Tensor, bool | Tensor]:
        """Return the value to propagate for a micro-batch, and whether it contributes at all."""
        total, count = loss
        alive = count > 0
        self._totals.append(_selected(total.detach(), alive))
        self._counts.append(count)
        size = self._processes.size
        if size > 1:
            # The sum of nothing is 0, so every process has a gradient to give to a reduction.
            return total * size * (
                self._many / self._guess if self._apart else 1 / self._guess
            ), True
        if self._many == 1:
            return total / above_zero(count), alive
        return total * (self._many / self._guess if self._apart else 1 / self._guess), alive

    @property
    def tokens(self) -> float | Tensor:
        """Number of labelled tokens of all micro-batches."""
        self._complete_sums()
        return sum(self._counts)

    def _complete_sums(self) -> None:
        """Add up sums and counts over the processes, once, after the last micro-batch."""
        if self._complete:
            return
        self._complete = True
        counts = [torch.as_tensor(one, device=self._totals[0].device) for one in self._counts]
        both = torch.stack([one.double() for one in (*self._totals, *counts)])
        both = self._processes.total(both)
        self._totals = list(both[: self._many].to(self._totals[0].dtype).unbind())
        self._counts = list(both[self._many :].unbind())
        if host_reads_are_free(both):
            self._counts = [float(one) for one in self._counts]

    @property
    def factor(self) -> float | Tensor | None:
        """Return the factor on the gradients after the last micro-batch."""
        if self._many == 1 and self._processes.size == 1:
            return None
        tokens = self.tokens
        share = (
            _share_alive([count > 0 for count in self._counts]) if self._apart else None
        ) or 1.0
        if isinstance(tokens, Tensor):
            wanted: Tensor = share * self._guess / above_zero(tokens).double()
            return wanted
        if tokens and tokens != share * self._guess:
            return share * self._guess / tokens
        return None

    @property
    def known(self) -> bool | Tensor:
        """See `Pass`."""
        self._complete_sums()
        return _any([count > 0 for count in self._counts])

    @property
    def mean(self) -> Tensor:
        """Mean over all labelled tokens."""
        self._complete_sums()
        total = torch.stack(self._totals).sum() if self._many > 1 else self._totals[0]
        return _where(self.known, total / above_zero(self.tokens))


def _check_shares(counts: Sequence[int | Tensor]) -> None:
    """Refuse a step in which a process has no labelled token, of which the mean would be NaN."""
    known = [int(count) for count in counts]
    if any(known) and not all(known):
        raise UserError(
            "with several processes, each share of a micro-batch needs a labelled token, found one "
            "without; return the pair (sum of the losses, number of labelled tokens), or start "
            "fewer processes"
        )


def _selected(value: Tensor, alive: bool | Tensor) -> Tensor:
    """Return the value if it contributes, else 0."""
    return (
        torch.where(alive, value, 0.0)
        if isinstance(alive, Tensor)
        else value
        if alive
        else torch.zeros_like(value)
    )


def _any(alive: Sequence[bool | Tensor]) -> bool | Tensor:
    if any(one is True for one in alive):
        return True
    waiting = [one for one in alive if isinstance(one, Tensor)]
    if waiting:
        return torch.stack(waiting).any()
    return False


def _share_alive(alive: Sequence[bool | Tensor]) -> float | None:
    """Return the share of micro-batches that contribute; None if all do."""
    kept = sum(one is not False for one in alive)
    if 0 < kept < len(alive):
        return kept / len(alive)
    return None


def _where(known: bool | Tensor, value: Tensor) -> Tensor:
    """Return the value if it is known, else NaN."""
    if isinstance(known, Tensor):
        return torch.where(known, value, math.nan)
    if known:
        return value
    return torch.full_like(value, math.nan)


def above_zero(count: float | Tensor) -> Any:
    """Return the count if it is above 0, else 1."""
    if isinstance(count, Tensor):
        return torch.where(count > 0, count, 1)
    return count or 1
