"""Numbers that describe the weights and values of a micro-batch, without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightMeasures:
    """Numbers of one micro-batch, added up over its heads.

    - `loss_0`, `loss_1`, …: mean cross-entropy of each head without weights, in nats
    - `weight_entropy`: entropy of the weights ÷ that of equal ones, 0 to 1
    - `effective_sample_size`: (Σ w)² ÷ Σ w² ÷ number of labels, 0 to 1
    - `kept_share`: share of the labels with a weight above 0
    - `clamp_rate`: share of the weights that the clamp has changed
    """

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._sums: Tensor | None = None
        self._clamps = False

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Add numbers by name."""
        self._found |= found

    def add_loss(self, head: int, loss: Tensor) -> None:
        """Add the mean cross-entropy of a head."""
        self._found[f"loss_{head}"] = loss

    @torch.no_grad()
    def add_weights(
        self, weights: Tensor, valid: Tensor, bounds: tuple[float, float] | None
    ) -> None:
        """Add the weights of a head.

        Args:
            weights: Weights, float32 [B, T − k], 0 where not valid.
            valid: True where there is a label, bool [B, T − k].
            bounds: Bounds of the clamp; None without one.
        """
        clamped = torch.zeros((), device=weights.device)
        if bounds is not None:
            low, high = bounds
            clamped = (valid & ((weights <= low) | (weights >= high))).sum()
        sums = torch.stack(
            [
                weights.sum(),
                weights.square().sum(),
                -torch.special.entr(weights).sum(),
                (weights > 0).sum(),
                clamped,
                valid.sum(),
            ]
        )
        self._sums = sums if self._sums is None else self._sums + sums
        self._clamps = bounds is not None

    def found(self) -> dict[str, Tensor]:
        """Return the numbers by name, 0-d tensors."""
        if self._sums is None:
            return self._found
        total, squares, logs, kept, clamped, labels = self._sums
        entropy = (total.log() - logs / total) / labels.log()
        found = self._found | {
            "weight_entropy": entropy,
            "effective_sample_size": total.square() / squares / labels,
            "kept_share": kept / labels,
        }
        if self._clamps:
            found["clamp_rate"] = clamped / labels
        return found


@torch.no_grad()
def value_measures(
    values: Tensor,
    earlier: Tensor | None,
    rewards: Tensor,
    labelled: Tensor,
    advantages: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return numbers of the value head, 0-d tensors.

    - `value_explained_variance`: 1 − variance of R − V ÷ variance of R, at most 1
    - `value_drift`: mean |V − earlier V|
    - `advantage_mean`, `advantage_deviation`: of the labelled tokens with a reward

    Args:
        values: Values, [B, T].
        earlier: Values of the earlier value head, [B, T]; None to leave the drift out.
        rewards: Reward of each sample, [B]; NaN where unknown.
        labelled: True where the next token has a label, bool [B, T].
        advantages: Advantages of the next tokens, [B, T]; None to leave them out.
    """
    known = labelled & ~rewards.isnan()[:, None]
    wanted = rewards.nan_to_num(0.0)[:, None].expand_as(values)
    found = {
        "value_explained_variance": 1
        - _variance(wanted - values, known) / _variance(wanted, known),
    }
    if earlier is not None:
        found["value_drift"] = _mean((values - earlier).abs(), known)
    if advantages is not None:
        found["advantage_mean"] = _mean(advantages, known)
        found["advantage_deviation"] = _variance(advantages, known).sqrt()
    return found


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, 0.0).sum() / known.sum()


def _variance(values: Tensor, known: Tensor) -> Tensor:
    return _mean((values - _mean(values, known)).square(), known)
