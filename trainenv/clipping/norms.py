"""Norms, scaling and means of lists of tensors, for all policies.

The tensors of one call are on one device. No value is read on the host, except one on the CPU.
Torch's foreach functions handle a whole list: on a GPU with a few kernels, on the CPU with a loop
in C++.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainenv.distributed.shards import completes, over_shards

TINY = torch.finfo(torch.float32).tiny

# Integer type as wide as a floating-point type, by bytes an element.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def device_of(parameters: Sequence[Tensor]) -> torch.device | None:
    """Return the device of the parameters; None, torch's default, without parameters."""
    if parameters:
        return parameters[0].device
    return None


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [p.grad for p in parameters if p.grad is not None]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all elements together, 0-d float32.

    For float32 tensors it has the same bits as `torch.nn.utils.get_total_norm`.
    """
    return norm_of_norms(tensor_norms(tensors))


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor, float32 [tensors]."""
    return torch.stack(_each_norm(tensors))


def norms_by_place(parameters: Sequence[Tensor]) -> Tensor:
    """Return the norm of each parameter's gradient, float32 [parameters]; 0 without a gradient."""
    each = iter(_each_norm(gradients_of(parameters)))
    nothing = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
    return torch.stack([nothing if p.grad is None else next(each) for p in parameters])


def norm_of_norms(norms: Tensor) -> Tensor:
    """Return the global norm of tensors with these norms, [tensors] → 0-d."""
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm


def global_norms(lists: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the global norm of each list, float32 [lists]."""
    each = torch.stack(_each_norm([tensor for tensors in lists for tensor in tensors]))
    norms: Tensor = torch.linalg.vector_norm(each.view(len(lists), -1), dim=1)  # [n, P] → [n]
    return norms


def is_finite(norm: Tensor) -> Tensor:
    """Tell if a norm is neither inf nor NaN, as a bool tensor of its shape.

    One comparison suffices, because NaN fails it too. A gradient of finite elements whose squares
    overflow float32 (from 1.8e19 on) has norm inf, and counts as non-finite.
    """
    return norm < math.inf


def scale_(tensors: list[Tensor], coefficient: Tensor) -> None:
    """Multiply in place by a 0-d tensor, as torch does: NaN × 0 stays NaN."""
    torch._foreach_mul_(tensors, coefficient)


def scale_or_zero_(tensors: list[Tensor], coefficient: Tensor) -> None:
    """Multiply in place by a 0-d tensor; a coefficient of 0 makes inf and NaN 0 too."""
    if _host_reads_are_free(tensors[0]):
        # This is the one value read on the host. On the CPU the read waits for no device, and an
        # unnecessary pass over the many small tensors of a tiny model would cost as much as the
        # norm.
        value = float(coefficient)
        if value == 0:
            torch._foreach_zero_(tensors)
        elif value != 1:
            torch._foreach_mul_(tensors, coefficient)
        return
    # NaN × 0 is NaN, but the bits of a NaN times the integer 0 are the bits of +0.0. Times the
    # integer 1, every number keeps its bits.
    bits = [tensor.view(_BITS[tensor.element_size()]) for tensor in tensors]
    torch._foreach_mul_(bits, (coefficient != 0).to(bits[0].dtype))
    torch._foreach_mul_(tensors, coefficient)


def scale_each_(parameters: Sequence[Tensor], coefficients: Tensor) -> None:
    """Multiply the gradient of each parameter in place by its own number, [parameters]."""
    pairs = [
        (p.grad, one)
        for p, one in zip(parameters, coefficients.unbind(), strict=True)
        if p.grad is not None
    ]
    torch._foreach_mul_([gradient for gradient, _ in pairs], [one for _, one in pairs])


def mean_of(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the mean over lists of tensors of equal shapes, as new tensors."""
    total = [tensor.clone() for tensor in lists[0]]
    for tensors in lists[1:]:
        torch._foreach_add_(total, list(tensors))
    torch._foreach_div_(total, len(lists))
    return total


def mean_of_elements(values: Tensor) -> Tensor:
    """Return the mean over elements, 0-d; over those of all processes if each holds a part."""
    if not completes():
        return values.mean()
    count = torch.full_like(values.sum(), values.numel())
    total, elements = over_shards(torch.stack([values.sum(), count])).unbind()
    return total / elements


def constant(value: float, like: Tensor) -> Tensor:
    """Return a 0-d float32 tensor, filled on the device of `like`.

    A copy from the host would wait for the device.
    """
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _each_norm(tensors: Sequence[Tensor]) -> list[Tensor]:
    # torch widens half precision to float32 here, but refuses to narrow float64.
    narrow = [tensor.float() if tensor.dtype == torch.float64 else tensor for tensor in tensors]
    norms = list(torch._foreach_norm(narrow, 2.0, dtype=torch.float32))
    if not completes():
        return norms
    return list(over_shards(torch.stack(norms).square()).sqrt().unbind())


def _host_reads_are_free(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
