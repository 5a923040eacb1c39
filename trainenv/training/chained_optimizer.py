"""Several optimizers as one: Muon for matrices and AdamW for the rest, for example."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainenv.types import UserError


class ChainedOptimizer(Optimizer):
    """Optimizers over different parameters of one model, stepped one after the other.

    Its groups are those of the optimizers, in their order, and so is its state dict, with the
    parameters numbered through. Groups that are added to one of them, and a learning rate that is
    written into a group, count for both.

    Args:
        optimizers: Optimizers, at least one, that share no parameter.

    Attributes:
        optimizers: The same optimizers.

    Raises:
        UserError: There is none, or one of them is no optimizer.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        # `Optimizer.__init__` would make groups and a state of its own, and wrap `step` for
        # profiling, which each of the optimizers does itself.
        self.optimizers = list(optimizers)
        odd = next((one for one in self.optimizers if not isinstance(one, Optimizer)), None)
        if odd is not None or not self.optimizers:
            found = "none"
            if odd is not None:
                found = f"a {type(odd).__name__}"
            raise UserError(
                "optimizer must be an optimizer, or a list of torch.optim.Optimizer, found a list "
                f"with {found}; give for example [Muon(matrices), AdamW(the_rest)]"
            )
        self.defaults: dict[str, Any] = {}
        if all("betas" in one.defaults for one in self.optimizers):
            self.defaults["betas"] = self.optimizers[0].defaults["betas"]
        self._states = _States(self.optimizers)

    @property
    def kinds(self) -> str:
        """Names of the optimizers' classes, in order."""
        return " + ".join(type(one).__name__ for one in self.optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of all optimizers, in order; the same dicts as theirs."""
        return [group for one in self.optimizers for group in one.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        left = iter(groups)
        for one in self.optimizers:
            one.param_groups = list(itertools.islice(left, len(one.param_groups)))

    @property
    def state(self) -> Any:
        """State of all optimizers, by parameter."""
        return self._states

    @state.setter
    def state(self, value: Any) -> None:
        assert value is self._states

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters of each optimizer; a closure is not called."""
        for one in self.optimizers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters."""
        for one in self.optimizers:
            one.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the last optimizer."""
        self.optimizers[-1].add_param_group(param_group)

    def train(self) -> None:
        """Put optimizers with modes into training mode."""
        for one in self.optimizers:
            if callable(mode := getattr(one, "train", None)):
                mode()

    def eval(self) -> None:
        """Put optimizers with modes into evaluation mode."""
        for one in self.optimizers:
            if callable(mode := getattr(one, "eval", None)):
                mode()

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups as one optimizer has them.

        What the state dict of one of them holds in addition is under `rest`, one entry for each.
        """
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for one in self.optimizers:
            first = sum(len(group["params"]) for group in groups)
            part = one.state_dict()
            state |= {first + key: entry for key, entry in part.pop("state").items()}
            for group in part.pop("param_groups"):
                groups.append(group | {"params": [first + place for place in group["params"]]})
            rest.append(part)
        whole = {"state": state, "param_groups": groups}
        if any(rest):
            whole["rest"] = rest
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; each optimizer gets its part."""
        groups = iter(state_dict["param_groups"])
        rest = state_dict.get("rest", itertools.repeat({}))
        first = 0
        for one, more in zip(self.optimizers, rest):
            own = list(itertools.islice(groups, len(one.param_groups)))
            count = sum(len(group["params"]) for group in own)
            places = range(first, first + count)
            part = {
                "state": {
                    place - first: state_dict["state"][place]
                    for place in places
                    if place in state_dict["state"]
                },
                "param_groups": [
                    group | {"params": [place - first for place in group["params"]]}
                    for group in own
                ],
            }
            one.load_state_dict(dict(more) | part)
            first += count

    def __repr__(self) -> str:
        return f"ChainedOptimizer({self.optimizers!r})"


class _States(MutableMapping[Any, Any]):
    """States of several optimizers as one mapping from parameters."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self._optimizers = optimizers

    def __getitem__(self, key: Any) -> Any:
        for one in self._optimizers:
            if key in one.state:
                return one.state[key]
        raise KeyError(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._owner(key).state[key] = value

    def __delitem__(self, key: Any) -> None:
        for one in self._optimizers:
            if key in one.state:
                del one.state[key]
                return
        raise KeyError(key)

    def __iter__(self) -> Iterator[Any]:
        for one in self._optimizers:
            yield from list(one.state)

    def __len__(self) -> int:
        return sum(len(one.state) for one in self._optimizers)

    def _owner(self, key: Any) -> Optimizer:
        """Return the optimizer of a parameter; the first one for any other key."""
        for one in self._optimizers:
            if isinstance(key, Tensor) and any(
                key is p for group in one.param_groups for p in group["params"]
            ):
                return one
        return self._optimizers[0]
