"""A clip policy together with its state; a training run calls it once a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainenv.clipping.norms import mean_of
from trainenv.types import ClipPolicy, ClipReport, UserError


class Clipper:
    """A policy and its state.

    The first call makes the state on the device of the gradients; later it follows them to another
    device. A saved state, loaded into a fresh `Clipper`, continues bit-exactly.

    Args:
        policy: Frozen dataclass of hyperparameters; clippers may share it.
        name: Name of the policy; None for the name of its class in lower case.

    Attributes:
        policy: Policy, unchanged.
        name: Name of the policy.
    """

    def __init__(self, policy: ClipPolicy, *, name: str | None = None) -> None:
        self.policy = policy
        self.name = name or type(policy).__name__.lower()
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
        loss: Tensor | None = None,
    ) -> ClipReport:
        """Clip `p.grad` in place, without waiting for the device.

        Args:
            parameters: Tensors on one device; those without a gradient are ignored.
            workers: Gradients of each micro-batch, [n][parameter], one for *every* parameter. A
                policy that needs workers scales them in place; `p.grad` becomes their mean.
            optimizer: Optimizer that will use the gradients; some policies read its moments.
            known: True if the gradient is that of a loss; a scalar bool tensor if only the device
                knows. A batch without labels has the gradient 0, from which a policy must not
                learn: the state stays as it was, and no momentum reset is requested.
            loss: Loss of the step, 0-d, for policies that judge it too; None without one.

        Raises:
            UserError: There is no gradient, or the workers do not match the parameters.
        """
        chosen = list(parameters)
        if workers is not None:
            _check_workers(workers, chosen)
            if not self.policy.needs_workers or len(workers) == 1:
                for parameter, gradient in zip(chosen, mean_of(workers), strict=True):
                    parameter.grad = gradient
                workers = None
        if workers is None:
            with_gradient = [p for p in chosen if p.grad is not None]
            if not with_gradient:
                chosen = []
            elif not getattr(self.policy, "per_tensor", False):
                chosen = with_gradient
        if not chosen:
            raise UserError(
                "expected parameters with gradients, found none; run loss.backward() first"
            )
        state = self._placed(chosen)
        given: dict[str, Any] = {"workers": workers, "optimizer": optimizer}
        if getattr(self.policy, "needs_loss", False):
            given["loss"] = loss
        if known is True:
            return self.policy.clip(chosen, state, **given)
        before = {name: tensor.clone() for name, tensor in state.items()}
        report = self.policy.clip(chosen, state, **given)
        if known is False:
            state.update(before)
            return replace(report, momentum_reset=False, skip=None)
        for name, tensor in before.items():
            # With gradients on a GPU, a counter that is on the CPU counts this step too.
            if tensor.device == known.device and tensor.shape == state[name].shape:
                state[name] = torch.where(known, state[name], tensor)
        if report.skip is not None:
            return replace(report, skip=report.skip & known.to(report.skip.device))
        return report

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the tensors of the state; empty before the first call."""
        return {name: tensor.clone() for name, tensor in (self._state or {}).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `state_dict` returned; an empty one makes the clipper fresh.

        The tensors are copied, and move to the device of the gradients at the next call.

        Raises:
            UserError: A tensor is missing, unknown, or of the wrong shape or type. The state of the
                clipper then stays as it was.
        """
        loaded = None
        if state:
            self._check(state)
            loaded = {name: tensor.detach().clone() for name, tensor in state.items()}
        self._state = loaded
        self._device = None

    def _placed(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the state on the device of the gradients; make it if there is none."""
        device = parameters[0].device
        if self._state is None:
            self._state = self.policy.init(parameters)
        elif self._device != device:
            # A policy may keep a tensor on the host on purpose; its fresh state tells which.
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
                f"the state of {self.name} must hold {_listed(expected)}, found {_listed(state)}; "
                "load a state that state_dict() of the same policy returned"
            )
        for name, like in expected.items():
            found = state[name]
            if not _fits(found, like):
                shape = list(like.shape) if like.numel() else "[any]"
                kind: object = type(found).__name__
                if isinstance(found, Tensor):
                    kind = f"{found.dtype} of shape {list(found.shape)}"
                raise UserError(
                    f"{name!r} in the state of {self.name} must be {like.dtype} of shape {shape}, "
                    f"found {kind}; load it into a policy with the same hyperparameters as when it "
                    "was saved"
                )


def _fits(found: object, like: Tensor) -> bool:
    """Tell if a tensor of a saved state has the type and the shape of the fresh one.

    A tensor that is empty in a fresh state grows to any length.
    """
    if not isinstance(found, Tensor) or found.dtype != like.dtype:
        return False
    if like.numel() == 0:
        return found.ndim == 1
    return found.shape == like.shape


def _check_workers(workers: Sequence[Sequence[Tensor]], parameters: Sequence[Tensor]) -> None:
    if not workers or any(len(worker) != len(parameters) for worker in workers):
        raise UserError(
            f"expected at least one worker and {len(parameters)} gradients of each (one a "
            f"parameter), found {[len(worker) for worker in workers]}; give zeros for a parameter "
            "that a micro-batch did not use"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"
