"""Order of the data: a pure function of seed, step, skip list and block order.

Data indices are counted over epochs without end. In each epoch they come in blocks of
`block_steps`. A reorder shuffles the whole blocks still to come in its epoch; a skip drops single
indices wherever the order has put them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from trainenv.types import as_whole


@dataclass(frozen=True)
class DataOrder:
    """Order of data indices.

    Args:
        seed: Seed of the shuffles.
        epoch_steps: Number of data indices in an epoch.
        block_steps: Number of data indices in a block.
        skips: Data indices that no step sees, ascending.
        reorders: Positions, counted before skipping, at which the remaining blocks were shuffled,
            in the order in which it happened.
    """

    seed: int
    epoch_steps: int
    block_steps: int
    skips: tuple[int, ...] = ()
    reorders: tuple[int, ...] = ()

    def index(self, step: int) -> int:
        """Return the data index of the step after `step` completed ones."""
        if not self.skips and not self.reorders:
            return step
        return self._index_at(self._position(step))

    def skip(self, indices: Iterable[int]) -> DataOrder:
        """Return the order without `indices`.

        Indices of steps already taken must not be among them: later steps would move.
        """
        return replace(self, skips=tuple(sorted({*self.skips, *indices})))

    def reorder(self, step: int) -> DataOrder:
        """Return the order with the remaining blocks of the epoch shuffled."""
        return replace(self, reorders=(*self.reorders, self._position(step)))

    def ahead(self, step: int, indices: Collection[int]) -> tuple[int, ...]:
        """Return those of `indices` that steps after `step` would see."""
        if not indices:
            return ()
        start = self._position(step)
        return tuple(
            sorted(i for i in set(indices) - set(self.skips) if self._position_of(i) >= start)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skips": list(self.skips), "reorders": list(self.reorders)}

    def load_state_dict(self, state: dict[str, Any]) -> DataOrder:
        return replace(self, skips=tuple(state["skips"]), reorders=tuple(state["reorders"]))

    def _position(self, step: int) -> int:
        """Return the position of the step after `step` completed ones, before skipping."""
        position = step
        for skipped in _skipped_positions(self):
            if skipped > position:
                break
            position += 1
        return position

    def _index_at(self, position: int) -> int:
        epoch, inside = divmod(position, self.epoch_steps)
        block, offset = divmod(inside, self.block_steps)
        return (
            epoch * self.epoch_steps
            + int(_block_order(self, epoch)[block]) * self.block_steps
            + offset
        )

    def _position_of(self, index: int) -> int:
        epoch, inside = divmod(index, self.epoch_steps)
        block, offset = divmod(inside, self.block_steps)
        place = int(np.flatnonzero(_block_order(self, epoch) == block)[0])
        return epoch * self.epoch_steps + place * self.block_steps + offset


def flagged_with(flagged: Iterable[int], more: object) -> tuple[int, ...]:
    """Return flagged data indices and further ones, ascending.

    Args:
        flagged: Flagged data indices so far.
        more: Whole numbers, also NumPy's and torch's, or a single one.

    Raises:
        UserError: A value is not a whole number, or below 0.
    """
    several = (
        isinstance(more, Iterable)
        and not isinstance(more, str | bytes)
        and getattr(more, "ndim", 1) > 0
    )
    indices = list(more) if several else [more]  # type: ignore[call-overload]
    return tuple(
        sorted({*flagged, *(as_whole(index, "a data index", least=0) for index in indices)})
    )


@lru_cache(maxsize=64)
def _skipped_positions(order: DataOrder) -> tuple[int, ...]:
    positions: list[int] = []
    for index in order.skips:
        insort(positions, order._position_of(index))
    return tuple(positions)


@lru_cache(maxsize=64)
def _block_order(order: DataOrder, epoch: int) -> np.ndarray:
    """Return the block at each place of an epoch.

    The last block keeps its place if it is shorter than the others.
    """
    whole, rest = divmod(order.epoch_steps, order.block_steps)
    blocks = np.arange(whole + bool(rest))
    for count, position in enumerate(order.reorders):
        if position // order.epoch_steps == epoch:
            first = -(-(position % order.epoch_steps) // order.block_steps)
            rng = np.random.Generator(np.random.Philox(key=[order.seed, count]))
            blocks[first:whole] = rng.permutation(blocks[first:whole])
    return blocks
