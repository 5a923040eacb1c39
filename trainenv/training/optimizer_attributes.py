"""Attributes of an optimizer as tensors and JSON values, and back.

They may be containers with any keys, arrays, and generators of random numbers. A value that JSON
lacks is a mapping with one key, its tag: `{"<deque>": […]}`. Parameters are named by their place in
the optimizer.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.training.copies import Copies
from trainenv.types import TENSOR

_TORCH = (  # attributes that torch itself gives an optimizer
    "defaults",
    "state",
    "param_groups",
    "_hook_for_profile",
    "_zero_grad_profile_name",
    "_step_supports_amp_scaling",
    "_need_device_dtype_check_for_fused",
    "_warned_capturable_if_run_uncaptured",
    "_patch_step_function",
    "_opt_called",
    "_params",  # of LBFGS
    "_numel_cache",
)
_BIT_GENERATORS = {"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"}
_DTYPES = {
    *(
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    *(
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    ),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}
_FACTORIES = {kind.__name__: kind for kind in (int, float, list, dict, set, deque)}
_MAPPINGS: dict[str, Callable[[], dict[Any, Any]]] = {
    "OrderedDict": OrderedDict,
    "Counter": Counter,
    **{
        f"defaultdict {name}": partial(defaultdict, factory) for name, factory in _FACTORIES.items()
    },
}


class _Unsaved(Exception):
    """Signal that a value has no known form and is not saved."""


def saved_attributes(optimizer: Optimizer) -> dict[str, Any]:
    """Return the attributes that training may change; none for torch's own optimizers."""
    saved = {}
    writer = _Writer(optimizer)
    for name, value in vars(optimizer).items():
        if name not in _TORCH and not name.startswith("_optimizer_"):
            with suppress(_Unsaved):
                saved[name] = writer.attribute(name, value)
    return saved


def attribute_names(optimizer: Optimizer) -> list[str] | None:
    """Return the names of all attributes; None for a torch optimizer without its own."""
    names = sorted(
        name
        for name in vars(optimizer)
        if name not in _TORCH and not name.startswith("_optimizer_")
    )
    if names or not type(optimizer).__module__.startswith("torch.optim"):
        return names
    return None


def drop_later_attributes(optimizer: Optimizer, names: Iterable[str]) -> None:
    """Delete attributes that could be saved and are not among `names`.

    A step after the saved state has made them.
    """
    for name in saved_attributes(optimizer).keys() - set(names):
        delattr(optimizer, name)


def load_attributes(optimizer: Optimizer, saved: Mapping[str, Any], copies: Copies) -> None:
    """Set attributes as they were saved, in the existing containers, tensors and generators.

    Args:
        optimizer: Optimizer whose state and groups are loaded already.
        saved: Return value of `saved_attributes`, perhaps read from a file.
        copies: Copies of the loaded tensors.
    """
    reader = _Reader(optimizer, copies)
    with torch.no_grad():
        for name, value in saved.items():
            if not callable(
                getattr(type(optimizer), name, None)
            ):  # a method, which no snapshot of ours replaces
                setattr(optimizer, name, reader.of(value, vars(optimizer).get(name), name))


def held_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Return other optimizers in the attributes of one, also in containers; each once."""
    found = {}
    for value in vars(optimizer).values():
        parts = (
            value.values()
            if type(value) is dict
            else value
            if type(value) in (list, tuple)
            else (value,)
        )
        found.update(
            {
                id(part): part
                for part in parts
                if isinstance(part, Optimizer) and part is not optimizer
            }
        )
    return list(found.values())


def _known(optimizer: Optimizer) -> dict[str, Any]:
    """Return the containers that the state dict covers, by path."""
    places = {id(p): place for place, p in enumerate(_parameters(optimizer))}
    entries = {
        f"state/{places[id(p)]}": entry for p, entry in optimizer.state.items() if id(p) in places
    }
    groups: dict[str, Any] = {
        f"param_groups/{place}": group for place, group in enumerate(optimizer.param_groups)
    }
    groups |= {
        f"param_groups/{place}/params": group["params"]
        for place, group in enumerate(optimizer.param_groups)
    }
    whole = {
        "/state": optimizer.state,
        "/param_groups": optimizer.param_groups,
        "/defaults": getattr(optimizer, "defaults", optimizer.param_groups),
    }
    return whole | {f"/{path}": value for path, value in (entries | groups).items()}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class _Writer:
    """Writer of attributes to tensors and JSON values. A container met twice is written once."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._places = {id(p): place for place, p in enumerate(_parameters(optimizer))}
        self._met = {
            id(value): path for path, value in _known(optimizer).items()
        }  # by the id of a container
        self._open: set[int] = set()  # of containers, one in the other
        self._alive: list[Any] = []  # what has an id above keeps it

    def attribute(self, name: str, value: Any) -> Any:
        met = dict(self._met)
        self._open = set()
        try:
            return self._of(value, name)
        except _Unsaved:
            self._met = met
            raise

    def _of(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Enum):
            return {"<enum>": value.name}
        if isinstance(value, np.generic):
            dtype, _, _, data = _bytes_of(np.asarray(value))
            return {"<scalar>": [dtype, data.hex()]}
        if isinstance(value, int) and not isinstance(value, bool):
            if -(2**63) <= value < 2**63:
                return int(value)
            return {"<int>": str(int(value))}
        if value is None or isinstance(value, bool | float | str):
            return value
        if isinstance(value, bytes):
            return {"<bytes>": value.hex()}
        if isinstance(value, complex):
            return {"<complex>": [value.real, value.imag]}
        if isinstance(value, torch.device | torch.dtype):
            return {f"<{type(value).__name__}>": str(value).removeprefix("torch.")}
        if isinstance(value, tuple):
            return {"<tuple>": self._row(value, path)}
        if isinstance(value, frozenset):
            return {"<frozenset>": self._sorted(value)}
        return self._mutable(value, path)

    def _mutable(self, value: Any, path: str) -> Any:
        if id(value) in self._open:
            raise _Unsaved
        if id(value) in self._met:
            return {"<same>": self._met[id(value)]}
        self._met[id(value)] = path
        self._open.add(id(value))
        self._alive.append(value)
        saved = self._content(value, path)
        self._open.discard(id(value))
        return saved

    def _content(self, value: Any, path: str) -> Any:
        if isinstance(value, list):
            return self._row(value, path)
        if isinstance(value, deque):
            return {"<deque>": [value.maxlen, self._row(value, path)]}
        if isinstance(value, set):
            return {"<set>": self._sorted(value)}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, bytearray):
            return {"<bytearray>": value.hex()}
        if type(value) is np.ndarray:  # a masked one is more than its bytes
            dtype, shape, order, data = _bytes_of(value)
            return {
                "<array>": [
                    dtype,
                    shape,
                    order,
                    torch.from_numpy(np.frombuffer(data, np.uint8).copy()),
                ]
            }
        if isinstance(value, torch.Generator):
            return {"<generator>": [str(value.device), value.get_state()]}
        if isinstance(value, np.random.Generator):
            return {"<numpy generator>": self._of(value.bit_generator, f"{path}/bits")}
        if isinstance(value, np.random.BitGenerator) and type(value).__name__ in _BIT_GENERATORS:
            return {"<bit generator>": self._of(value.state, f"{path}/state")}
        if isinstance(value, np.random.RandomState):
            return {"<random state>": self._of(value.get_state(legacy=False), f"{path}/state")}
        if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
            return {"<random>": self._of(value.getstate(), path)}
        raise _Unsaved

    def _tensor(self, value: Tensor) -> Any:
        if id(value) in self._places:
            return {"<parameter>": self._places[id(value)]}
        whole = value.layout == torch.strided and value.dtype in _DTYPES and not value.is_meta
        if (
            not whole or type(value).__torch_dispatch__ != Tensor.__torch_dispatch__
        ):  # one made of others
            raise _Unsaved
        if isinstance(value, nn.Parameter):
            return {"<own parameter>": [value.requires_grad, value]}
        return value

    def _row(self, parts: Iterable[Any], path: str) -> list[Any]:
        return [self._of(part, f"{path}/{place}") for place, part in enumerate(parts)]

    def _sorted(self, parts: Iterable[Any]) -> list[Any]:
        """Return the members of a set in an order that depends on nothing else."""
        return sorted((self._key(part) for part in parts), key=json.dumps)

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        parts = []
        left_out = 0
        for place, (key, part) in enumerate(value.items()):
            met = dict(self._met)
            still_open = set(self._open)
            try:
                saved = self._of(part, f"{path}/{place}")
            except _Unsaved:  # a function, say: what is there stays
                self._met = met
                self._open = still_open
                saved = {"<live>": True}
                left_out += 1
            parts.append([self._key(key), saved])
        if left_out and left_out == len(parts):
            raise _Unsaved
        kind = type(value).__name__
        if isinstance(value, defaultdict):
            kind = f"defaultdict {getattr(value.default_factory, '__name__', '')}"
        if kind in _MAPPINGS:
            return {"<mapping>": [kind, parts]}
        plain = all(isinstance(key, str) and "/" not in key and key != TENSOR for key, _ in parts)
        if plain and not (len(parts) == 1 and str(parts[0][0]).startswith("<")):
            return dict(parts)
        return {"<dict>": parts}

    def _key(self, key: Any) -> Any:
        """Write a key, or a member of a set: it is hashable, so nothing in it is changed."""
        if isinstance(key, Enum) and isinstance(key, int | str):
            return key.value
        if type(key) is int and key in self._places:
            return {"<id>": self._places[key]}
        if isinstance(key, tuple | frozenset):
            parts = [self._key(part) for part in key]
            if isinstance(key, tuple):
                return {"<tuple>": parts}
            return {"<frozenset>": sorted(parts, key=json.dumps)}
        known = isinstance(
            key,
            np.generic | int | float | str | bytes | complex | torch.device | torch.dtype | None,
        )
        if id(key) not in self._places and (isinstance(key, Enum) or not known):
            raise _Unsaved
        return self._of(key, "")


class _Reader:
    """Reader of attributes, which writes into the existing containers.

    Whoever holds one of them, such as a closure, sees the change.
    """

    def __init__(self, optimizer: Optimizer, copies: Copies) -> None:
        self._copies = copies
        self._parameters = _parameters(optimizer)
        self._made = _known(optimizer)  # containers, by path
        self._used = {id(value) for value in self._made.values()}

    def of(self, saved: Any, live: Any, path: str) -> Any:
        if isinstance(saved, Tensor):
            return self._copies.of(saved, live if _writable(live) else None)
        if isinstance(saved, list):  # a tuple or the like too, in snapshots from before tags
            if isinstance(live, tuple):
                return self._read_tuple(saved, live, path)
            return self._list(saved, live, path)
        if not isinstance(saved, Mapping):
            return saved
        tag, value = next(iter(saved.items())) if len(saved) == 1 else ("", None)
        if tag == "generator" and isinstance(
            live, torch.Generator
        ):  # in snapshots from before tags
            tag = "<generator>"
            value = [str(live.device), value]
        if tag == "<same>":
            return self._made.get(str(value), live)
        read = None
        if tag.startswith("<"):
            read = getattr(self, "_read_" + tag[1:-1].replace(" ", "_"), None)
        if read is None:
            return self._pairs([[key, part] for key, part in saved.items()], live, path)
        return read(value, live, path)

    def _claim(self, live: Any, kind: Any, path: str, fresh: Any) -> Any:
        """Return the existing object if it is of the kind and not yet taken; else None."""
        made = live if isinstance(live, kind) and id(live) not in self._used else fresh()
        self._used.add(id(made))
        self._made[path] = made
        return made

    def _list(self, saved: Any, live: Any, path: str) -> Any:
        made = self._claim(live, list, path, list)
        made[:] = self._row(saved, list(live) if isinstance(live, list) else [], path)
        return made

    def _row(self, saved: Any, live: Any, path: str) -> list[Any]:
        have = [*live, *[None] * len(saved)]
        return [self.of(part, have[place], f"{path}/{place}") for place, part in enumerate(saved)]

    def _read_tuple(self, saved: Any, live: Any, path: str) -> Any:
        parts = self._row(saved, live if isinstance(live, tuple) else (), path)
        if hasattr(type(live), "_make") and len(live) == len(parts):
            return type(live)._make(parts)
        if isinstance(live, torch.Size):
            return torch.Size(parts)
        return tuple(parts)

    def _pairs(self, saved: Any, live: Any, path: str) -> Any:
        have: Mapping[Any, Any] = {}
        if isinstance(live, Mapping):
            have = live
        parts = []
        for place, (key, part) in enumerate(saved):
            known = self.of(key, None, "")
            if isinstance(part, Mapping) and "<live>" in part:
                parts += [(known, have[known])] if known in have else []
            else:
                parts.append((known, self.of(part, have.get(known), f"{path}/{place}")))
        made = self._claim(
            live, MutableMapping, path, lambda: copy.copy(live) if isinstance(live, dict) else {}
        )
        made.clear()
        for known, part in parts:
            made[known] = part
        return made

    def _read_dict(self, saved: Any, live: Any, path: str) -> Any:
        return self._pairs(saved, live, path)

    def _read_mapping(self, saved: Any, live: Any, path: str) -> Any:
        kind, pairs = saved
        fits = isinstance(live, dict) and type(live).__name__ == kind.partition(" ")[0]
        return self._pairs(pairs, live if fits else _MAPPINGS[kind](), path)

    def _read_deque(self, saved: Any, live: Any, path: str) -> Any:
        maxlen, parts = saved
        have = []
        if isinstance(live, deque):
            have = list(live)
        fits = None
        if isinstance(live, deque) and live.maxlen == maxlen:
            fits = live
        made = self._claim(fits, deque, path, lambda: deque(maxlen=maxlen))
        row = self._row(parts, have, path)
        made.clear()
        made.extend(row)
        return made

    def _read_set(self, saved: Any, live: Any, path: str) -> Any:
        made = self._claim(live, set, path, set)
        made.clear()
        made.update(self.of(part, None, "") for part in saved)
        return made

    def _read_frozenset(self, saved: Any, live: Any, path: str) -> Any:
        return frozenset(self.of(part, None, "") for part in saved)

    def _read_array(self, saved: Any, live: Any, path: str) -> Any:
        dtype, shape, order, data = saved
        found = np.frombuffer(data.cpu().numpy().tobytes(), np.dtype(dtype)).reshape(
            shape, order=order
        )
        same = (
            isinstance(live, np.ndarray) and live.dtype == found.dtype and live.shape == found.shape
        )
        fits = same and live.flags.writeable and _order(live) == order
        made = self._claim(
            live if fits else None, np.ndarray, path, lambda: found.copy(order=order)
        )
        made[...] = found
        return made

    def _read_scalar(self, saved: Any, live: Any, path: str) -> Any:
        return np.frombuffer(bytes.fromhex(saved[1]), np.dtype(saved[0]))[0]

    def _read_generator(self, saved: Any, live: Any, path: str) -> Any:
        made = self._claim(live, torch.Generator, path, lambda: torch.Generator(saved[0]))
        made.set_state(saved[1].cpu())
        return made

    def _read_numpy_generator(self, saved: Any, live: Any, path: str) -> Any:
        inner = None
        if isinstance(live, np.random.Generator):
            inner = live.bit_generator
        bits = self.of(saved, inner, f"{path}/bits")
        return self._claim(
            live if bits is inner else None,
            np.random.Generator,
            path,
            lambda: np.random.Generator(bits),
        )

    def _read_bit_generator(self, saved: Any, live: Any, path: str) -> Any:
        state = self.of(saved, None, f"{path}/state")
        name = str(state["bit_generator"])
        fits = None
        if type(live).__name__ == name:
            fits = live
        made = self._claim(fits, np.random.BitGenerator, path, lambda: _bits(name))
        made.state = state
        return made

    def _read_random_state(self, saved: Any, live: Any, path: str) -> Any:
        state = self.of(saved, None, f"{path}/state")
        fits = None
        if isinstance(live, np.random.RandomState) and _same_kind(live, state):
            fits = live
        name = str(state["bit_generator"])
        made = self._claim(
            fits, np.random.RandomState, path, lambda: np.random.RandomState(_bits(name))
        )
        made.set_state(state)
        return made

    def _read_random(self, saved: Any, live: Any, path: str) -> Any:
        made = self._claim(live, random.Random, path, random.Random)
        made.setstate(self.of(saved, None, ""))
        return made

    def _read_parameter(self, saved: Any, live: Any, path: str) -> Any:
        return self._parameters[saved]

    def _read_id(self, saved: Any, live: Any, path: str) -> Any:
        return id(self._parameters[saved])

    def _read_own_parameter(self, saved: Any, live: Any, path: str) -> Any:
        found = self._copies.of(saved[1], live if _writable(live) else None)
        if isinstance(found, nn.Parameter):
            return found
        return nn.Parameter(found, requires_grad=saved[0])

    def _read_enum(self, saved: Any, live: Any, path: str) -> Any:
        if isinstance(live, Enum) and saved in type(live).__members__:
            return type(live)[saved]
        return live

    def _read_int(self, saved: Any, live: Any, path: str) -> Any:
        return int(saved)

    def _read_bytes(self, saved: Any, live: Any, path: str) -> Any:
        return bytes.fromhex(saved)

    def _read_bytearray(self, saved: Any, live: Any, path: str) -> Any:
        made = self._claim(live, bytearray, path, bytearray)
        made[:] = bytes.fromhex(saved)
        return made

    def _read_complex(self, saved: Any, live: Any, path: str) -> Any:
        return complex(*saved)

    def _read_device(self, saved: Any, live: Any, path: str) -> Any:
        return torch.device(saved)

    def _read_dtype(self, saved: Any, live: Any, path: str) -> Any:
        found = getattr(torch, saved, None)
        if isinstance(found, torch.dtype):
            return found
        return live


def _bytes_of(array: Any) -> tuple[str, list[int], str, bytes]:
    """Return the dtype, the shape, the memory order and the bytes of an array."""
    if array.dtype.hasobject or array.dtype.names is not None:
        raise _Unsaved
    return array.dtype.str, list(array.shape), _order(array), array.tobytes(order=_order(array))


def _order(array: Any) -> Any:
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        return "F"
    return "C"


def _writable(live: Any) -> bool:
    """Return True if a tensor can be copied into.

    Not one whose elements share memory, nor one made in inference mode.
    """
    return (
        isinstance(live, Tensor)
        and not live.is_inference()
        and (live.numel() < 2 or 0 not in live.stride())
    )


def _bits(name: str) -> Any:
    if name not in _BIT_GENERATORS:
        raise ValueError(f"expected a bit generator of NumPy, found {name!r}")
    return getattr(np.random, name)()


def _same_kind(live: Any, state: Any) -> bool:
    return bool(live.get_state(legacy=False)["bit_generator"] == state["bit_generator"])
