"""Python values as tensors and JSON, and back.

The state of a scheduler or of a callback has tuples, counters and keys that are numbers. A
`Snapshot` holds tensors and JSON alone, so each such value becomes a mapping with one mark.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv.types import TENSOR, UserError

_MARK = "__python__"
_MAPPINGS: Mapping[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "Counter": lambda items: Counter(dict(items)),
    "OrderedDict": OrderedDict,
    "defaultdict of list": lambda items: defaultdict(list, items),
    "defaultdict of int": lambda items: defaultdict(int, items),
    "defaultdict of float": lambda items: defaultdict(float, items),
    "defaultdict of dict": lambda items: defaultdict(dict, items),
}


def pack(value: Any, name: str = "the state") -> Any:
    """Return a value as nested dicts and lists of tensors and JSON; tensors are not copied.

    Args:
        value: Tensors, arrays, numbers, strings, bytes, and mappings, lists, tuples and sets of
            them.
        name: Name of the value, for the error.

    Raises:
        UserError: The value holds something else.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return _marked("float", str(value))
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic):
        return pack(value.item(), name)
    if type(value) is list:
        return [pack(part, name) for part in value]
    if type(value) is tuple:
        return _marked("tuple", [pack(part, name) for part in value])
    if isinstance(value, set | frozenset):
        return _marked(type(value).__name__, [pack(part, name) for part in sorted(value)])
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _marked("array", torch.from_numpy(np.array(value)))
    if isinstance(value, bytes):
        return _marked("bytes", list(value))
    if isinstance(value, Mapping):
        return _mapping(value, name)
    if isinstance(value, str | int | float):  # a class of the user's own
        return pack(type(value).__mro__[-2](value), name)
    raise UserError(
        f"{name} must be made of tensors, numbers, strings and containers of them, to be saved, "
        f"found {type(value).__name__}; let its state_dict() return such values"
    )


def unpack(value: Any, live: Any = None) -> Any:
    """Return what `pack` was given, with tensors of its own.

    Args:
        value: Packed value.
        live: Counterpart of the unpacked value, whose tensors are written into where they fit; may
            be incomplete.
    """
    if isinstance(value, Tensor):
        return _written(value, live)
    if isinstance(value, list):
        fits = isinstance(live, list) and len(live) == len(value)
        return [
            unpack(part, old) for part, old in zip(value, live if fits else [None] * len(value))
        ]
    if not isinstance(value, Mapping):
        return value
    have: Mapping[Any, Any] = {}
    if isinstance(live, Mapping):
        have = live
    if _MARK not in value:
        return {key: unpack(part, have.get(key)) for key, part in value.items()}
    kind = value[_MARK]
    if kind in _MAPPINGS:
        keys = [unpack(key) for key, _ in value["value"]]
        items = [(k, unpack(part, have.get(k))) for k, (_, part) in zip(keys, value["value"])]
        return _MAPPINGS[kind](items)
    if kind == "tuple":
        return tuple(unpack(value["value"], list(live) if isinstance(live, tuple) else None))
    part = unpack(value["value"])
    if kind == "array":
        return part.numpy()
    return {"float": float, "set": set, "frozenset": frozenset, "bytes": bytes}[kind](part)


def _written(saved: Tensor, live: Any) -> Tensor:
    fits = isinstance(live, Tensor) and live.dtype == saved.dtype and live.shape == saved.shape
    if not fits:
        return saved.clone()
    with torch.no_grad():
        # From pinned memory a GPU fetches it in the background, before whatever comes next.
        return live.copy_(saved, non_blocking=live.is_cuda)  # type: ignore[no-any-return]


def _marked(kind: str, value: Any) -> dict[str, Any]:
    return {_MARK: kind, "value": value}


def _mapping(value: Mapping[Any, Any], name: str) -> dict[str, Any]:
    plain = all(type(key) is str and "/" not in key and key not in (_MARK, TENSOR) for key in value)
    kind = type(value).__name__
    if isinstance(value, defaultdict):
        kind = f"defaultdict of {getattr(value.default_factory, '__name__', None)}"
    if plain and (kind == "dict" or kind not in _MAPPINGS):
        return {key: pack(part, name) for key, part in value.items()}
    if kind not in _MAPPINGS:
        kind = "dict"
    return _marked(kind, [[pack(key, name), pack(part, name)] for key, part in value.items()])
