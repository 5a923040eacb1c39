"""Batches by data index from a data set with random access: torch's map-style ones, `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainenv.data.permutation import ShuffledRows, digest
from trainenv.tools.checks import whole
from trainenv.tools.rng import all_seeded
from trainenv.types import UserError, as_bool


@dataclass(frozen=True, kw_only=True)
class DatasetBatches:
    """Batches of a map-style data set, a pure function of the data index.

        batches = DatasetBatches(dataset=rows, batch_size=8, collate=collator)
        run = TrainingRun(model, optimizer, batches, {"steps": 1000})

    The order of the rows is computed, not stored, and differs in each epoch. Random numbers that
    the data set or the collator draws from the global generators of torch, Python or NumPy start
    from the seed and the index, so that a batch with augmentation or masking is the same each time.

    Args:
        dataset: Data set with `__len__` and `__getitem__`, `datasets.Dataset` for example. Its
            `__getitems__` is used if it has one.
        batch_size: Number of rows of a batch, at most the length of the data set.
        collate: Function that makes a batch from a list of rows; None for torch's default.
        seed: Random seed of order and draws.
        shuffle: False to keep the order of the data set in every epoch.

    Attributes:
        epoch_steps: Number of batches in an epoch.

    Raises:
        UserError: The data set has no random access, or fewer rows than a batch.
    """

    dataset: Any
    batch_size: int
    collate: Callable[[list[Any]], Any] | None = None
    seed: int = 0
    shuffle: bool = True
    epoch_steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_random_access(self.dataset)
        size = whole("batch_size", self.batch_size, least=1)
        object.__setattr__(self, "seed", whole("seed", self.seed, least=0))
        object.__setattr__(self, "shuffle", as_bool(self.shuffle, "shuffle"))
        if self.collate is not None and not callable(self.collate):
            raise UserError(
                "collate must be a function (list of rows) → batch, found "
                f"{type(self.collate).__name__}; give one, or leave it out"
            )
        rows = len(self.dataset)
        if rows < size:
            raise UserError(
                f"expected a data set of at least batch_size ({size}) rows, found {rows}; "
                "give more rows or a smaller batch_size"
            )
        object.__setattr__(self, "epoch_steps", rows // size)

    @classmethod
    def from_loader(cls, loader: Any, *, seed: int = 0) -> DatasetBatches:
        """Return the batches of a `torch.utils.data.DataLoader`, without its worker processes.

        Args:
            loader: Loader of a map-style data set in its own order or shuffled.
            seed: Random seed of order and draws.

        Raises:
            UserError: The loader has another sampler, or its data set has no random access.
        """
        from torch.utils.data import RandomSampler, SequentialSampler

        check_random_access(loader.dataset)
        sampler = getattr(loader, "sampler", None)
        plain = type(sampler) in (RandomSampler, SequentialSampler) and not getattr(
            sampler, "replacement", False
        )
        if loader.batch_size is None or not plain:
            raise UserError(
                "expected a DataLoader with a batch_size and the usual sampler, found "
                f"{type(getattr(loader, 'batch_sampler', sampler)).__name__}; make the batches with"
                " DatasetBatches(dataset=…, batch_size=…)"
            )
        return cls(
            dataset=loader.dataset,
            batch_size=loader.batch_size,
            collate=loader.collate_fn,
            seed=seed,
            shuffle=isinstance(sampler, RandomSampler),
        )

    def __call__(self, index: int, /) -> Any:
        """Return the batch of data index `index` ≥ 0, as the collator makes it."""
        order = ShuffledRows(
            rows=len(self.dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
        )
        places: Sequence[int] = order(index).tolist()
        with all_seeded(digest(f"data/draws/{self.seed}/{index}")):
            if callable(several := getattr(self.dataset, "__getitems__", None)):
                rows = several(places)
            else:
                rows = [self.dataset[place] for place in places]
            return self._collated(rows)

    def _collated(self, rows: list[Any]) -> Any:
        if self.collate is not None:
            return self.collate(rows)
        from torch.utils.data import default_collate

        return default_collate(rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> DatasetBatches:
        return self


def check_random_access(dataset: object) -> None:
    """Check that the rows of a data set can be read in any order.

    Raises:
        UserError: They cannot; the error names the remedy.
    """
    missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
    if not missing:
        return
    remedy = "give a map-style data set"
    if hasattr(dataset, "__iter__"):
        remedy = "for a stream take StreamBatches"
    raise UserError(
        f"expected a data set with len(dataset) and dataset[row], found {type(dataset).__name__} "
        f"without {' and '.join(missing)}; {remedy}"
    )
