"""`Processes`: the processes that train one model together, seen from one of them.

All of them train the same steps on the same batches: each takes its share of the rows, and sums
over rows are completed over all processes. So every process has the same loss, the same gradient
norm and the same decisions to act on. `ALONE` is the usual case of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from trainenv.types import UserError

_APART = 0x9E3779B97F4A7C15  # odd, so that no two of 2^63 processes have the same random seed


class Processes:
    """One process that trains a model alone; the base of those that train one together.

    Attributes:
        kind: Value of the key `distributed`.
        rank: Number of this process, from 0.
        size: Number of processes.
        same_state: True if all processes have the same state but for their random numbers.
    """

    kind = "none"
    rank = 0
    size = 1
    same_state = True

    # ── the model ─────────────────────────────────────────────────────────────────────────────────

    def prepare(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Give a model the form that is trained, before its optimizer is made.

        Args:
            model: Model, in place.
            blocks: Its blocks.
        """

    def trained_form(self, model: nn.Module) -> nn.Module:
        """Return the module that computes the training loss of a model."""
        return model

    @contextmanager
    def syncing(self, model: nn.Module, now: bool) -> Iterator[None]:
        """Add up gradients over the processes in the backward pass inside the block.

        Args:
            model: Model that is trained.
            now: False to leave it to a later backward pass of the same step.
        """
        yield

    def collect(self, parameters: Sequence[Tensor]) -> None:
        """Put the gradients of a backward pass where the optimizer looks for them."""

    def recover(self, model: nn.Module) -> None:
        """Forget a step that has failed in all processes, before another one is trained."""

    @contextmanager
    def over_shards(self) -> Iterator[None]:
        """Complete norms over all processes inside the block, if each holds a part of a tensor."""
        yield

    # ── values ────────────────────────────────────────────────────────────────────────────────────

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        return value

    def agreed(self, value: Tensor) -> Tensor:
        """Return the tensor of process 0, so that all processes have the same bits."""
        return value

    def fingerprint(self, own: str) -> str:
        """Return the hash of a run from the hash of the part that this process holds."""
        return own

    # ── settings ──────────────────────────────────────────────────────────────────────────────────

    def seed(self, seed: int) -> int:
        """Return the random seed of this process; process 0 has that of the run."""
        return (seed + self.rank * _APART) % 2**63

    def settings(self) -> dict[str, Any]:
        """Return what the bits of a run depend on, as JSON values; empty for one process."""
        return {}


ALONE = Processes()
"""One process."""


def check_divisible(kind: str, batch_size: int, accumulation: int, size: int) -> None:
    """Check that each process gets as many rows of a micro-batch.

    Args:
        kind: Value of the key `distributed`.
        batch_size: Sequences of a batch.
        accumulation: Micro-batches of a batch.
        size: Number of processes.

    Raises:
        UserError: The rows of a micro-batch are no multiple of the processes.
    """
    rows = batch_size // accumulation
    if rows % size:
        raise UserError(
            f"distributed {kind} needs batch_size ÷ accumulation to be a multiple of the number of "
            f"processes, found {batch_size} ÷ {accumulation} = {rows} and {size} processes; start "
            "another number of processes, or set batch_size"
        )
