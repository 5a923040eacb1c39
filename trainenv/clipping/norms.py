"""What every policy does with lists of tensors: norms, scaling, means.

No value is read on the host, one on the CPU aside.

The tensors of one call live on one device. Everything goes through torch's foreach functions: on a
GPU a whole list is a handful of kernels, on the CPU the loop runs in C++.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny

# The integer as wide as a floating-point type, by bytes an element.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    return [p.grad for p in parameters if p.grad is not None]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of all elements together, 0-d float32; the same bits as `torch.nn.utils.get_total_norm` for float32 tensors."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(_each_norm(tensors)))
    return norm


def global_norms(lists: Sequence[Sequence[Tensor]]) -> Tensor:
    """The global norm of each list, float32 of shape [lists]."""
    each = torch.stack(_each_norm([tensor for tensors in lists for tensor in tensors]))
    norms: Tensor = torch.linalg.vector_norm(each.view(len(lists), -1), dim=1)  # [n, P] → [n]
    return norms


def is_finite(norm: Tensor) -> Tensor:
    """Whether a norm is neither inf nor NaN, as a bool tensor of its shape: one comparison, which NaN fails too.

    A gradient of finite elements whose squares overflow float32 (from 1.8e19 on) has norm inf, and
    counts as non-finite.
    """
    return norm < math.inf


def scale_(tensors: list[Tensor], coefficient: Tensor) -> None:
    """Multiply in place by a 0-d tensor, as torch does: NaN × 0 stays NaN."""
    torch._foreach_mul_(tensors, coefficient)


def scale_or_zero_(tensors: list[Tensor], coefficient: Tensor) -> None:
    """Multiply in place by a 0-d tensor, where coefficient 0 makes everything 0, inf and NaN included."""
    if _host_reads_are_free(tensors[0]):
        # The one value read on the host. On the CPU no device is waited for, and a needless pass
        # over a tiny model's many small tensors would cost as much as the norm.
        value = float(coefficient)
        if value == 0:
            torch._foreach_zero_(tensors)
        elif value != 1:
            torch._foreach_mul_(tensors, coefficient)
        return
    # NaN × 0 is NaN, but the bits of a NaN × the integer 0 are the bits of +0.0, and × 1 keep every
    # number as it is.
    bits = [tensor.view(_BITS[tensor.element_size()]) for tensor in tensors]
    torch._foreach_mul_(bits, (coefficient != 0).to(bits[0].dtype))
    torch._foreach_mul_(tensors, coefficient)


def mean_of(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The mean over lists of tensors alike, in new tensors."""
    total = [tensor.clone() for tensor in lists[0]]
    for tensors in lists[1:]:
        torch._foreach_add_(total, list(tensors))
    torch._foreach_div_(total, len(lists))
    return total


def constant(value: float, like: Tensor) -> Tensor:
    """A 0-d float32 tensor on the device of `like`, filled there: a copy from the host would wait."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _each_norm(tensors: Sequence[Tensor]) -> list[Tensor]:
    # torch widens half precision to float32 as it goes, but refuses to narrow float64.
    narrow = [tensor.float() if tensor.dtype == torch.float64 else tensor for tensor in tensors]
    return list(torch._foreach_norm(narrow, 2.0, dtype=torch.float32))


def _host_reads_are_free(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
