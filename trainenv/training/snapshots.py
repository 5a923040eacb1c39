"""Snapshots from nested state and back: tensors under flat names, the rest as JSON values.

The fingerprint of a snapshot is computed here too.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from trainenv.types import TENSOR, Snapshot, UserError

_PLAIN = (float, int, str, bool, type(None))  # asked first: a state holds thousands of numbers
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
_SMALL = 2**16  # bytes; a larger tensor is worth the way to NumPy
_CHUNK = 2**17  # words compared at a time: what a comparison makes stays in the cache

Keep = Callable[
    [str, Tensor], Tensor
]  # a tensor's flat name and the tensor → what a snapshot holds of it


def capture(step: int, state: Mapping[str, Any], since: Snapshot | None = None) -> Snapshot:
    """Return a snapshot of nested dicts and lists of tensors and JSON values.

    The state may change as soon as this returns. A tensor on the CPU is cloned, unless `since`
    holds the same bits under the same name: then both snapshots share it. Bits are compared,
    because writes to `tensor.data` leave version counters unchanged. A comparison ends at the first
    difference, so it costs next to nothing where a tensor has changed. A tensor on a GPU is always
    copied to pinned host
    memory: comparing it would cost the same transfer.
    """
    known = {} if since is None else since.tensors
    copying: set[torch.device] = set()

    def keep(name: str, tensor: Tensor) -> Tensor:
        if tensor.is_cuda:
            copying.add(tensor.device)
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
        if tensor.is_cpu and name in known and same_bits(known[name], tensor):
            return known[name]
        return tensor.clone(memory_format=torch.contiguous_format)

    snapshot = _snapshot(step, state, keep)
    for device in copying:
        torch.cuda.current_stream(device).synchronize()  # once for all copies
    return snapshot


def view(step: int, state: Mapping[str, Any]) -> Snapshot:
    """Return a snapshot that shares the tensors of `state`: valid until they change."""
    return _snapshot(step, state, lambda name, tensor: tensor)


class Recent:
    """The last two snapshots that a run was at, referenced weakly: unused ones are freed."""

    def __init__(self) -> None:
        self._references: tuple[weakref.ref[Snapshot], ...] = ()

    def add(self, snapshot: Snapshot) -> None:
        """Note that the run is at this snapshot: it was just taken, or restored."""
        others = [
            ref
            for ref in self._references
            if (other := ref()) is not None and other is not snapshot
        ]
        self._references = (weakref.ref(snapshot), *others[:1])

    def newest(self) -> Snapshot | None:
        """Return the newest one that still exists."""
        return next((snapshot for reference in self._references if (snapshot := reference())), None)


def expand(snapshot: Snapshot) -> dict[str, Any]:
    """Return the nested state that `capture` was given.

    Its tensors are the snapshot's own: clone what you keep.
    """
    expanded = _join(snapshot.state, snapshot.tensors)
    assert isinstance(expanded, dict)
    return expanded


def with_state(snapshot: Snapshot, state: Mapping[str, Any]) -> Snapshot:
    """Return a snapshot with another state, and the tensors that this state refers to."""
    tensors = {name: snapshot.tensors[name] for name in sorted(_names(state))}
    return replace(snapshot, state=state, tensors=tensors)


def fingerprint(snapshot: Snapshot, leave_out: tuple[str, ...] = ()) -> str:
    """Return a 128-bit hash (xxh3) of a snapshot without the top-level parts in `leave_out`."""
    digest = xxhash.xxh3_128()
    state = {key: value for key, value in snapshot.state.items() if key not in leave_out}
    digest.update(json.dumps([snapshot.step, state], sort_keys=True).encode())
    for name in sorted(_names(state)):
        tensor = snapshot.tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _names(state: Any) -> set[str]:
    """Yield the names of the tensors that a state refers to."""
    names = set()
    left = [state]
    while left:
        value = left.pop()
        if isinstance(value, Mapping) and TENSOR in value:
            names.add(value[TENSOR])
        elif isinstance(value, Mapping | list):
            left += (
                part
                for part in (value.values() if isinstance(value, Mapping) else value)
                if not isinstance(part, _PLAIN)
            )
    return names


def _snapshot(step: int, state: Mapping[str, Any], keep: Keep) -> Snapshot:
    tensors: dict[str, Tensor] = {}
    return Snapshot(step=step, tensors=tensors, state=_split(state, "", tensors, {}, keep))


def _split(
    value: Any, name: str, tensors: dict[str, Tensor], aliases: dict[Any, str], keep: Keep
) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return {TENSOR: _name(value, name, tensors, aliases, keep)}
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        if "/" in "".join(keys):
            raise UserError(
                "keys of a state must not hold a slash, found "
                f"{next(key for key in keys if '/' in key)!r} in {name!r}"
            )
        above = ""
        if name:
            above = f"{name}/"
        return {
            key: part
            if isinstance(part, _PLAIN)
            else _split(part, above + key, tensors, aliases, keep)
            for key, part in zip(keys, value.values())
        }
    if isinstance(value, list | tuple):
        return [
            part
            if isinstance(part, _PLAIN)
            else _split(part, f"{name}/{place}", tensors, aliases, keep)
            for place, part in enumerate(value)
        ]
    if isinstance(value, np.generic) and isinstance(
        value.item(), _PLAIN
    ):  # a rate of an optimizer, a count of a loss
        return value.item()
    raise UserError(
        f"the state {name!r} must be tensors, numbers, strings, lists and dicts, found "
        f"{type(value).__name__}"
    )


def _name(
    tensor: Tensor, name: str, tensors: dict[str, Tensor], aliases: dict[Any, str], keep: Keep
) -> str:
    """Keep a tensor under `name` and return its name.

    A tensor whose memory was kept before (tied weights) has its earlier name.
    """
    key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if tensor.numel() and key in aliases:
        return aliases[key]
    tensors[name] = keep(name, tensor.detach())
    aliases[key] = name
    return name


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Compare tensors bit by bit: equal NaN are equal, and 0.0 differs from −0.0.

    Ends at the first difference.
    """
    if one.dtype != two.dtype or one.shape != two.shape or one.element_size() not in _BITS:
        return False
    if one.nbytes <= _SMALL or not one.is_cpu:
        bits = _BITS[one.element_size()]
        return torch.equal(one.view(bits), two.view(bits))
    ours = _words(one)
    theirs = _words(two)
    # few at first: most tensors that changed differ at once
    start = 0
    size = 64
    while start < len(ours):
        if (ours[start : start + size] != theirs[start : start + size]).any():
            return False
        start = start + size
        size = min(8 * size, _CHUNK)
    return True


def _words(tensor: Tensor) -> np.ndarray:
    # NumPy compares these as fast as memory can be read; torch.equal takes three times as long.
    flat: np.ndarray = tensor.view(_BITS[tensor.element_size()]).numpy().reshape(-1)
    if flat.nbytes % 8:
        return flat
    return flat.view(np.int64)


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [part if isinstance(part, _PLAIN) else _join(part, tensors) for part in value]
    if not isinstance(value, _PLAIN) and isinstance(value, Mapping):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: _join(part, tensors) for key, part in value.items()}
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
