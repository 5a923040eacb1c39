"""Live parts of a training: their state, and the way back into the very same tensors.

Each part is one kind of thing that training changes. An adapter names the parts of its framework;
a run in place captures and restores them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.tools.packing import pack, unpack
from trainenv.training import optimizers
from trainenv.training.parameter_names import unwrapped
from trainenv.types import UserError


class Part(Protocol):
    """One kind of thing that training changes."""

    def state(self) -> Any:
        """Return the state as tensors and JSON. The tensors may be the live ones."""
        ...

    def load(self, state: Any, /) -> None:
        """Take on a state; none of its tensors are kept."""
        ...


class ModelPart:
    """Trained parameters and buffers of a model. Frozen parameters are left out.

    Args:
        model: Model, wrapped or compiled or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrapped(model)

    def state(self) -> Any:
        """See `Part`."""
        return {"trained": self._trained(), "buffers": dict(self._model.named_buffers())}

    def load(self, state: Any) -> None:
        """See `Part`."""
        with torch.no_grad():
            for name, live in self._trained().items():
                live.copy_(state["trained"][name], non_blocking=live.is_cuda)
            for name, buffer in self._model.named_buffers():
                self._load_buffer(name, buffer, state["buffers"].get(name))

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def _load_buffer(self, name: str, live: Tensor, saved: Tensor | None) -> None:
        if saved is None:  # made since
            return
        if saved.shape == live.shape and saved.dtype == live.dtype:
            live.copy_(saved, non_blocking=live.is_cuda)
        else:
            above, _, key = name.rpartition(".")
            self._model.get_submodule(above)._buffers[key] = saved.to(live.device, copy=True)


class OptimizerPart:
    """State, groups and attributes of an optimizer.

    Args:
        optimizer: Optimizer of torch, or one that is made like it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def state(self) -> Any:
        """See `Part`."""
        return optimizers.state_of(self._optimizer) | optimizers.names_of(self._optimizer)

    def load(self, state: Any) -> None:
        """See `Part`."""
        optimizers.load_state(self._optimizer, state)


class StatefulPart:
    """Any object with `state_dict` and `load_state_dict`: scheduler, scaler, averaged weights.

    Args:
        name: Name of the object, for errors.
        thing: Object.

    Raises:
        UserError: The object lacks one of the methods.
    """

    def __init__(self, name: str, thing: Any) -> None:
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(thing, method, None)):
                raise UserError(
                    f"{name} must have state_dict() and load_state_dict(), to be steered, found "
                    f"{type(thing).__name__} without {method}; add them, or use mode='watch'"
                )
        self._name = name
        self._thing = thing

    def state(self) -> Any:
        """See `Part`."""
        return pack(self._thing.state_dict(), f"the state of {self._name}")

    def load(self, state: Any) -> None:
        """See `Part`."""
        self._thing.load_state_dict(unpack(state, self._thing.state_dict()))


class AttributesPart:
    """Attributes of an object: the counters of a framework.

    Args:
        thing: Object.
        names: Names of its attributes; those that it does not have are left out.
    """

    def __init__(self, thing: Any, names: Iterable[str]) -> None:
        self._thing = thing
        self._names = tuple(names)

    def state(self) -> Any:
        """See `Part`."""
        return pack(self._attributes(), f"the counters of {type(self._thing).__name__}")

    def load(self, state: Any) -> None:
        """See `Part`."""
        for name, value in unpack(state, self._attributes()).items():
            setattr(self._thing, name, value)

    def _attributes(self) -> dict[str, Any]:
        return {
            name: getattr(self._thing, name) for name in self._names if hasattr(self._thing, name)
        }


class LengthPart:
    """Length of a list that only grows, such as a log: restoring drops the entries added since.

    Args:
        thing: Object that holds the list.
        name: Name of the attribute.
    """

    def __init__(self, thing: Any, name: str) -> None:
        self._thing = thing
        self._name = name

    def state(self) -> Any:
        """See `Part`."""
        return len(getattr(self._thing, self._name))

    def load(self, state: Any) -> None:
        """See `Part`."""
        del getattr(self._thing, self._name)[state:]


def state_of(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return the state of all parts by name, without copies."""
    return {name: part.state() for name, part in parts.items()}


def load_state(parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    """Restore the state of all parts."""
    for name, part in parts.items():
        if name in state:
            part.load(state[name])
