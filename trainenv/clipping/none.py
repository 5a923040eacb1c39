"""No clipping, or clipping at a fixed global norm (Pascanu et al. 2013, arXiv:1211.5063).

With ‖g‖ the global L2 norm and M = `max_norm`:

    g ← g · min(1, M / (‖g‖ + 1e-6))

the same bits as `torch.nn.utils.clip_grad_norm_`. Deviations: none.

A non-finite gradient passes: unchanged without `max_norm`, and with it as in torch (norm inf:
finite elements become 0 and infinite ones NaN; norm NaN: all become NaN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainenv.clipping.norms import (
    constant,
    gradients_of,
    norm_of_norms,
    scale_,
    tensor_norms,
)
from trainenv.tools.checks import number
from trainenv.types import ClipReport


@dataclass(frozen=True, kw_only=True)
class NoClip:
    """No clipping, or clipping at a fixed norm. The score is norm ÷ `max_norm`, 0 without it.

    Args:
        max_norm: Largest global norm (L2) that passes, above 0; None lets everything pass.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = False

    max_norm: float | None = None

    def __post_init__(self) -> None:
        if self.max_norm is not None:
            number("max_norm", self.max_norm, above=0)

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def clip(
        self,
        parameters: Sequence[Tensor],
        state: dict[str, Tensor],
        /,
        *,
        workers: Sequence[Sequence[Tensor]] | None = None,
        optimizer: Optimizer | None = None,
    ) -> ClipReport:
        """Scale the gradients to `max_norm` if their norm is larger."""
        gradients = gradients_of(parameters)
        norms = tensor_norms(gradients)
        norm = norm_of_norms(norms)
        if self.max_norm is None:
            return ClipReport(
                norm, norm, constant(math.inf, norm), constant(0.0, norm), tensor_norms=norms
            )
        coefficient = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)
        scale_(gradients, coefficient)
        return ClipReport(
            norm,
            norm * coefficient,
            constant(self.max_norm, norm),
            norm / self.max_norm,
            tensor_norms=norms,
        )
