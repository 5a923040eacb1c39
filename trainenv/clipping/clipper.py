"""A clip policy together with its state: what a training run calls once a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainenv.clipping.norms import mean_of
from trainenv.types import ClipPolicy, ClipReport, UserError


class Clipper:
    """Calls a policy and keeps its state.

    The state is made at the first call, on the gradients' device, and follows them. Loading a saved
    one into a fresh `Clipper` continues bit for bit.

    Args:
        policy: a frozen dataclass of hyperparameters; may be shared.
        name: what to call it; by default the class's name in small letters.

    Attributes:
        policy: as given.
        name: as given.
    """

    def __init__(self, policy: ClipPolicy, *, name: str | None = None) -> None:
        self.policy = policy
        self.name = type(policy).__name__.lower() if name is None else name
        self._state: dict[str, Tensor] | None = None
        self._device: torch.device | None = None

    def __repr__(self) -> str:
        return f"Clipper({self.policy!r}, name={self.name!r})"

    @torch.no_grad()
    def __call__(
        self,
        parameters: Iterable[Tensor],
        *,
        workers: Sequence[Sequence[Tensor]] | None = None,
        optimizer: Optimizer | None = None,
        known: bool | Tensor = True,
    ) -> ClipReport:
        """Clip `p.grad` in place, without waiting for the device.

        Args:
            parameters: tensors on one device; those without a gradient are ignored.
            workers: gradients of each micro-batch, [n][parameter], one for *every* parameter given.
                `p.grad` is filled with their mean, after the policy scaled them in place if it
                wants workers.
            optimizer: the one that will use the gradients; some policies look at its moments.
            known: whether the gradient is that of a loss; a scalar bool tensor where only the
                device knows. The gradient 0 of a batch without labels tells nothing of those to
                come: the state stays as it was, and no reset is asked for.

        Raises:
            UserError: there is no gradient, or the workers do not match the parameters.
        """
        chosen = list(parameters)
        if workers is not None:
            _check_workers(workers, chosen)
            if not self.policy.needs_workers or len(workers) == 1:
                for parameter, gradient in zip(chosen, mean_of(workers), strict=True):
                    parameter.grad = gradient
                workers = None
        if workers is None:
            chosen = [p for p in chosen if p.grad is not None]
        if not chosen:
            raise UserError(
                "expected parameters with gradients, found none; run loss.backward() before clipping"
            )
        state = self._placed(chosen)
        if known is True:
            return self.policy.clip(chosen, state, workers=workers, optimizer=optimizer)
        before = {name: tensor.clone() for name, tensor in state.items()}
        report = self.policy.clip(chosen, state, workers=workers, optimizer=optimizer)
        if known is False:
            state.update(before)
            return replace(report, momentum_reset=False)
        for name, tensor in before.items():
            if (
                tensor.device == known.device and tensor.shape == state[name].shape
            ):  # steps are counted on the CPU
                state[name] = torch.where(known, state[name], tensor)
        return report

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the state's tensors; empty before the first call."""
        return {name: tensor.clone() for name, tensor in (self._state or {}).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned; an empty one makes the clipper fresh.

        The tensors are copied, and move to the gradients' device at the next call.

        Raises:
            UserError: a tensor is missing, unknown, or of the wrong shape or type. The state is
                then as it was.
        """
        if state:
            self._check(state)
        self._state = (
            {name: tensor.detach().clone() for name, tensor in state.items()} if state else None
        )
        self._device = None

    def _placed(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The state, made where there is none and moved where it lies elsewhere."""
        device = parameters[0].device
        if self._state is None:
            self._state = self.policy.init(parameters)
        elif self._device != device:
            # A policy may keep a tensor on the host on purpose: its fresh state says where each
            # belongs.
            self._state = {
                name: self._state[name].to(like.device)
                for name, like in self.policy.init(parameters).items()
            }
        self._device = device
        return self._state

    def _check(self, state: Mapping[str, Tensor]) -> None:
        expected = self.policy.init(())
        if set(state) != set(expected):
            raise UserError(
                f"the state of {self.name} holds {_listed(expected)}, found {_listed(state)}; "
                "load what state_dict() of the same policy returned"
            )
        for name, like in expected.items():
            found = state[name]
            # What starts empty grows once it is needed.
            fits = isinstance(found, Tensor) and found.dtype == like.dtype
            if not fits or (found.ndim != 1 if like.numel() == 0 else found.shape != like.shape):
                shape = "[any]" if like.numel() == 0 else str(list(like.shape))
                what = (
                    f"{found.dtype} of shape {list(found.shape)}"
                    if isinstance(found, Tensor)
                    else type(found).__name__
                )
                raise UserError(
                    f"{name!r} in the state of {self.name} must be {like.dtype} of shape {shape}, found {what}; "
                    "load it into a policy with the hyperparameters that it was saved with"
                )


def _check_workers(workers: Sequence[Sequence[Tensor]], parameters: Sequence[Tensor]) -> None:
    if not workers or any(len(worker) != len(parameters) for worker in workers):
        raise UserError(
            f"expected at least one worker and {len(parameters)} gradients of each (one a parameter), "
            f"found {[len(worker) for worker in workers]}; give zeros for a parameter that a micro-batch did not use"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"
