"""Shares of a comparison that are trained apart, and joined by `trainenv.compare.merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainenv.types import UserError

SHARD = "shard-"
"""Start of the name of a shard's folder."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Share of the cells of a comparison, for jobs that do not know of each other.

    Args:
        number: Number of the share, from 1 on.
        count: Number of shares.

    Raises:
        UserError: The number is not one of 1 to the number of shares.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UserError(
                f"a shard is I/N with I from 1 to N, found {self.number}/{self.count}; the shards "
                "of four are 1/4, 2/4, 3/4 and 4/4"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `I/N`."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise UserError(f"a shard is I/N, found {text!r}; the first of four is 1/4")
        return cls(number=int(number), count=int(count))

    def of(self, every: Sequence[T]) -> Sequence[T]:
        """Return the share of a list."""
        return every[self.number - 1 :: self.count]

    def folder(self, whole: Path) -> Path:
        """Return the folder of the share in that of the whole comparison."""
        if self.count == 1:
            return whole
        return whole / f"{SHARD}{self.number}-of-{self.count}"


WHOLE = Shard()
"""All cells."""
