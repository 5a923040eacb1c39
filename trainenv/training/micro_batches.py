"""Micro-batches of a step, from whatever a user's data function returns, on the run's device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv.types import IGNORED, Batch, UserError

_LABELS = ("labels", "label", "label_ids", "targets", "target")
_MASKS = ("loss_mask", "attention_mask")


def as_batch(data: Any, index: int, accumulation: int, *, bare: bool = False) -> Batch:
    """Return data as a `Batch`.

    With accumulation n above 1:

    - A tensor, a mapping (nested too) or a tuple of tensors is one batch, and is cut into n parts
      with equally many rows. Rows are the first dimension, which all tensors must share. NumPy
      arrays and lists with one entry a row are cut too. Tensors without a dimension or with a
      single row, and everything else, go to all parts.
    - A list of n entries holds the micro-batches, unless its tensors differ in type or number of
      dimensions: that is what a `DataLoader` makes of (inputs, labels), and is one batch.
    - A tuple of n entries holds the micro-batches if it can't be one batch: its tensors have fewer
      than n rows, or different numbers of rows, or its entries are all mappings or all sequences.

    Args:
        data: Return value of `batches(index)`.
        index: Data index.
        accumulation: Number of micro-batches in a step.
        bare: True if the objective takes bare tensors, so that a tuple can't be one batch.

    Raises:
        UserError: The data can't be divided, or could be read in two ways; says what to return.
    """
    if isinstance(data, Batch):
        if not data.micro:
            raise UserError(
                f"a Batch must hold at least one micro-batch, found none at data index {index}"
            )
        return data
    if accumulation == 1:
        return Batch(micro=(data,), index=index)
    if (
        isinstance(data, list | tuple)
        and len(data) == accumulation
        and not _is_one_batch(data, accumulation, bare)
    ):
        _check_not_shifted(data, bare)
        return Batch(micro=tuple(data), index=index)
    if isinstance(data, Tensor | Mapping) or (
        isinstance(data, list | tuple) and _is_one_batch(data, accumulation, bare)
    ):
        return Batch(micro=_cut(data, accumulation), index=index)
    raise _indivisible(data, accumulation)


def first_rows(micro: Any, count: int) -> Any:
    """Return a micro-batch with its first `count` rows, or fewer if it has no more."""
    rows = max((len(array) for array in _arrays(micro) if array.ndim), default=0)
    return _rows(micro, rows, slice(0, count))


def share_of(micro: Any, place: int, parts: int) -> Any:
    """Return one of `parts` equal shares of the rows of a micro-batch.

    Raises:
        UserError: The rows are no multiple of `parts`.
    """
    if parts == 1:
        return micro
    rows = max((len(array) for array in _arrays(micro) if array.ndim), default=0)
    if not rows or rows % parts:
        raise UserError(
            f"with {parts} processes, a micro-batch must have a multiple of {parts} rows, found "
            f"{rows}; return other rows, or start another number of processes"
        )
    size = rows // parts
    return _rows(micro, rows, slice(size * place, size * (place + 1)))


def placed(micro: Any, device: torch.device) -> Any:
    """Return a micro-batch with its tensors on `device`."""
    if isinstance(micro, Tensor):
        if micro.device == device:
            return micro
        return micro.to(device, non_blocking=True)
    if isinstance(micro, Mapping):
        return {key: placed(part, device) for key, part in micro.items()}
    if isinstance(micro, list | tuple):
        return _alike(micro, [placed(part, device) for part in micro])
    return micro


def token_count(micro: Any) -> int:
    """Return the number of predicted tokens; 0 if there are none.

    They are those of the first integer tensor, less one a row.
    """
    array = micro if isinstance(micro, Tensor) else next(filter(_is_integer, _arrays(micro)), None)
    if array is None or not _is_integer(array):
        return 0
    return int(array.shape[0] * (array.shape[1] - 1) if array.ndim > 1 else math.prod(array.shape))


def pass_size(micro: Any) -> int:
    """Return the number of tokens, else rows, that a pass works on, at least 1; FLOPs follow it."""
    return token_count(micro) or max(
        (_rows_of(array) for array in itertools.islice(_arrays(micro), 1)), default=1
    )


def labelled(micro_batches: Sequence[Any]) -> list[int | Tensor]:
    """Return the number of labelled tokens of each micro-batch, over which a mean loss is the mean.

    The rule, for an objective that returns a plain mean:

    - A single tensor: the predicted tokens, all but the first of each row.
    - A mapping: the entries of `labels` (or `label`, `label_ids`, `targets`, `target`) other than
      −100; if there is a `loss_mask` of that shape, those that it selects. Without labels, the
      entries selected by `loss_mask`, or else by `attention_mask`; without masks, the tokens of its
      first integer tensor, as for a single one.
    - A tuple or list of at least two tensors: the entries of its last integer tensor other than
      −100; if there is a boolean tensor of that shape, those that it selects.
    - Labels that repeat the inputs (`input_ids`, else the first integer tensor) wherever there is a
      label are shifted inside the model, as transformers' causal models do: the first of each row
      is no label. The same holds for a mask in place of labels.
    - Without integers, or with float labels: every row.

    If this rule does not fit, let the objective return a `trainenv.types.LossSum`.

    Returns:
        A number if the labels are on the CPU; else a scalar int64 tensor on their device, so that
        no step waits for it.
    """
    found = [_counted(micro) for micro in micro_batches]
    # Of all together: in one small micro-batch each label may be the input by chance.
    repeats = [one.repeats for one in found if isinstance(one, _Marks) and one.repeats is not None]
    if all(map(host_reads_are_free, repeats)):
        shifted: bool | Tensor = all(map(bool, repeats))
    else:
        shifted = torch.stack([repeat.to(repeats[-1].device) for repeat in repeats]).all()
    return [one.count(shifted) if isinstance(one, _Marks) else one for one in found]


def host_reads_are_free(tensor: Tensor) -> bool:
    """Return True if values on this device can be read without waiting."""
    return tensor.is_cpu


# ── cutting up ────────────────────────────────────────────────────────────────────────────────────


def _is_one_batch(data: list[Any] | tuple[Any, ...], accumulation: int, bare: bool) -> bool:
    """Return True if a sequence is one batch of several tensors, not a list of micro-batches."""
    lengths = [len(array) for array in _arrays(data) if array.ndim]
    if bare or max(lengths, default=0) < accumulation:
        return False
    kinds = {
        (part.dtype, part.ndim) if isinstance(part, Tensor | np.ndarray) else type(part)
        for part in data
    }
    if hasattr(data, "_fields"):
        return True
    if len(kinds) > 1:
        return isinstance(data, tuple) or all(list(_arrays(part)) for part in data)
    if isinstance(data, list) or not isinstance(data[0], Tensor | np.ndarray):
        return False
    return len(data) != accumulation or len(set(lengths)) == 1


def _check_not_shifted(data: Sequence[Any], bare: bool) -> None:
    """Refuse a list [inputs, labels] of a language model: it looks like two micro-batches."""
    if bare or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        return
    x, y = data
    free = host_reads_are_free(x) and host_reads_are_free(y)
    likely = (
        free
        and x.dim() == 2
        and x.shape == y.shape
        and x.shape[1] > 1
        and not x.is_floating_point()
    )
    if likely and torch.equal(x[:, 1:], y[:, :-1]) and not torch.equal(x, y):
        raise UserError(
            "a list of 2 tensors holds two micro-batches, but the second of these is the first "
            "shifted by a token; return "
            "(inputs, labels) as a tuple or a mapping to have it cut by rows"
        )


def _cut(data: Any, parts: int) -> tuple[Any, ...]:
    if isinstance(data, Tensor) and data.dim() and len(data) and len(data) % parts == 0:
        return data.chunk(parts)
    lengths = [len(array) for array in _arrays(data) if array.ndim]
    rows = max(lengths, default=0)
    if not rows or isinstance(data, Tensor):
        raise _indivisible(data, parts)
    if others := sorted({length for length in lengths if length not in (1, rows)}):
        raise UserError(
            f"with accumulation {parts}, the tensors of a batch must have as many rows each, found "
            f"{rows} and {others[-1]}; "
            "put what is the same for all rows into tensors of one row"
        )
    if rows % parts:
        raise UserError(
            f"with accumulation {parts}, batches(index) must return a multiple of {parts} rows, "
            f"found {rows} in each tensor "
            f"of a {type(data).__name__}; return other rows, or a list of {parts} micro-batches"
        )
    size = rows // parts
    return tuple(
        _rows(data, rows, slice(size * place, size * (place + 1))) for place in range(parts)
    )


def _rows(data: Any, rows: int, which: slice) -> Any:
    """Return some rows of everything that has `rows` of them."""
    if isinstance(data, Tensor | np.ndarray):
        if data.ndim and len(data) == rows:
            return data[which]
        return data
    if isinstance(data, Mapping):
        return {key: _rows(part, rows, which) for key, part in data.items()}
    if isinstance(data, list | tuple):
        if not list(_arrays(data)):
            if len(data) == rows:
                return data[which]
            return data
        return _alike(data, [_rows(part, rows, which) for part in data])
    return data


def _indivisible(data: Any, parts: int) -> UserError:
    length = (
        ""
        if (isinstance(data, Tensor) and not data.dim()) or not isinstance(data, Sized)
        else f" of length {len(data)}"
    )
    return UserError(
        f"with accumulation {parts}, batches(index) must return a tensor, a mapping or a tuple of "
        "tensors of a multiple of "
        f"{parts} rows, or a sequence of {parts} micro-batches; found {type(data).__name__}{length}"
    )


def _alike(data: list[Any] | tuple[Any, ...], parts: list[Any]) -> Any:
    if hasattr(data, "_fields"):
        return type(data)(*parts)
    return type(data)(parts)


# ── counting ──────────────────────────────────────────────────────────────────────────────────────


def _rows_of(array: Tensor | np.ndarray) -> int:
    if array.ndim:
        return max(1, len(array))
    return 1


@dataclass(frozen=True, slots=True)
class _Marks:
    """Labels of a micro-batch, before it is known whether the model shifts them.

    Attributes:
        marks: Bool tensor, true at each label.
        repeats: Scalar bool tensor, true if each label equals the input at its place; None without
            inputs to compare.
    """

    marks: Tensor
    repeats: Tensor | None

    @classmethod
    def of(cls, marks: Tensor, labels: Tensor, inputs: Tensor | None) -> _Marks:
        """Compare the labels with the inputs if both have the shape [B, T, …]."""
        if inputs is None or marks.ndim < 2 or not inputs.shape == marks.shape == labels.shape:
            return cls(marks, None)
        return cls(marks, ((labels == inputs) | ~marks).all())

    def count(self, shifted: bool | Tensor) -> int | Tensor:
        """Return the number of labels, without the first of each row if they are shifted."""
        if self.repeats is None or shifted is False:
            count = self.marks.sum()
        elif shifted is True:
            count = self.marks[:, 1:].sum()
        else:
            count = torch.where(torch.as_tensor(shifted), self.marks[:, 1:].sum(), self.marks.sum())
        if host_reads_are_free(count):
            return int(count)
        return count


def _counted(micro: Any) -> int | _Marks:
    if isinstance(micro, Mapping):
        return _counted_by_name(micro)
    tensors = [] if isinstance(micro, Tensor) else [_tensor(array) for array in _arrays(micro)]
    integers = [t for t in tensors if _is_integer(t)]
    if len(tensors) < 2 or not integers:
        return pass_size(micro)
    labels = integers[-1]
    marks = labels != IGNORED
    for mask in tensors:
        if mask.dtype == torch.bool and mask.shape == labels.shape:
            marks = marks & mask
    return _Marks.of(marks, labels, integers[0])


def _counted_by_name(micro: Mapping[Any, Any]) -> int | _Marks:
    named = {
        name: _tensor(part) for name, part in micro.items() if isinstance(part, Tensor | np.ndarray)
    }
    inputs = named.get("input_ids")
    if inputs is None:
        inputs = next(
            (t for name, t in named.items() if name not in _MASKS and _is_integer(t)), None
        )
    labels = next((named[name] for name in _LABELS if name in named), None)
    if labels is not None:
        if not _is_integer(labels):
            return _rows_of(labels)
        marks = labels != IGNORED
        mask = named.get("loss_mask")
        if mask is not None and mask.shape == marks.shape:
            marks = marks & (mask != 0)
        return _Marks.of(marks, labels, inputs)
    mask = next(
        (named[name] for name in _MASKS if name in named and named[name].ndim in (1, 2)), None
    )
    if mask is None or inputs is None:
        return pass_size(micro)
    return _Marks.of(mask != 0, inputs, inputs)


def _arrays(value: Any) -> Iterator[Any]:
    """Yield every tensor and numeric NumPy array in nested mappings, lists and tuples."""
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _arrays(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _arrays(part)


def _is_integer(array: Tensor | np.ndarray) -> bool:
    if isinstance(array, np.ndarray):
        return array.dtype.kind in "iu"
    return not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool)


def _tensor(array: Tensor | np.ndarray) -> Tensor:
    if isinstance(array, Tensor):
        return array
    return torch.as_tensor(array)
