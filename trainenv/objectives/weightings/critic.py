"""Verifiable critic: tokens weighted by how much they change the probability of success.

A value head learns V(s) → P(success | prefix s) by the squared error to the reward R of the sample
(1 right, 0 wrong). With s_k the prefix that ends with token k:

    δ_k = γ·V(s_k) − V(s_{k−1}),   δ_T = R − V(s_{T−1}) for the last token
    A_k = Σ_l (γλ)^l · δ_{k+l}     (Schulman 2016, GAE; A = δ at λ = 0)
    w_k = clamp(exp(A_k ÷ β), low, high)

as in advantage-weighted regression (Peng 2019) and IQL (Kostrikov 2021). At γ = 1 the δ of a sample
add up to R − V(s_0). The value head is trained alone first, for `value_steps` steps; then the loss
is the weighted cross-entropy + `value_coefficient` × squared error. No gradient flows through the
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainenv.objectives.weightings.targets import Targets
from trainenv.tools.checks import count, number


@dataclass(frozen=True, kw_only=True)
class Critic:
    """Weights exp(advantage ÷ β), clamped.

    V is a probability, so that advantages lie within ±1: at β = 0.9 most weights are near 1, and
    the clamp never binds. `whiten=True` scales the advantages of a micro-batch to deviation 1.

    Args:
        value_steps: Steps at the start in which the value head alone is trained; None for a sixth
            of the budget of a configured run (half an epoch of three), else 100.
        gamma: Discount, above 0 and at most 1.
        lam: λ of the generalised advantage, 0 to 1; 0 for the TD error.
        beta: Temperature of the weights, above 0.
        low: Least weight, above 0.
        high: Greatest weight.
        whiten: True to subtract the mean of the advantages and divide by their deviation.
        value_coefficient: Factor on the loss of the value head after `value_steps`, at least 0.
        value_clip: Greatest change of a value against the earlier one that lowers its loss, above
            0, as PPO clips (Schulman 2017); None for the plain squared error.
        refresh_steps: Steps after which the earlier values are those of the present value head.
        value_to_trunk: True to let the value loss train the trunk too, after `value_steps`.
    """

    value_steps: int | None = None
    gamma: float = 1.0
    lam: float = 0.0
    beta: float = 0.9
    low: float = 0.1
    high: float = 5.0
    whiten: bool = False
    value_coefficient: float = 0.5
    value_clip: float | None = 0.2
    refresh_steps: int = 100
    value_to_trunk: bool = True

    needs_value: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    divides_by_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.value_steps is not None:
            count("value_steps", self.value_steps, least=0)
        number("gamma", self.gamma, above=0, most=1)
        number("lam", self.lam, least=0, most=1)
        number("beta", self.beta, above=0)
        number("low", self.low, above=0)
        number("high", self.high, least=self.low)
        number("value_coefficient", self.value_coefficient, least=0)
        if self.value_clip is not None:
            number("value_clip", self.value_clip, above=0)
        count("refresh_steps", self.refresh_steps, least=1)

    def weights(self, targets: Targets, /) -> Tensor:
        """Return the weights of a head, float32 [B, T − k]."""
        assert targets.advantage is not None
        weights = (targets.advantage / self.beta).exp().clamp(self.low, self.high)
        return torch.where(targets.valid, weights, 0.0)

    def advantages(self, values: Tensor, rewards: Tensor, labelled: Tensor) -> Tensor:
        """Return the advantage of each token, float32 [B, T]; entry t is that of token t + 1.

        Args:
            values: V of the prefixes that end with tokens 0 to T − 1, [B, T].
            rewards: Reward of each sample, [B]; NaN where unknown: its advantages are 0.
            labelled: True where token t + 1 has a label, bool [B, T].
        """
        errors = td_errors(values.detach().float(), rewards, labelled, self.gamma)
        advantages = errors
        if self.lam:
            advantages = torch.zeros_like(errors)
            later = torch.zeros_like(errors[:, 0])
            for place in reversed(range(errors.shape[1])):
                later = errors[:, place] + self.gamma * self.lam * later
                advantages[:, place] = later
            advantages = torch.where(labelled, advantages, 0.0)
        if self.whiten:
            known = labelled & ~rewards.isnan()[:, None]
            number_known = known.sum().clamp_min(1)
            mean = advantages.sum() / number_known
            apart = torch.where(known, advantages - mean, 0.0)
            advantages = apart / ((apart.square().sum() / number_known).sqrt() + 1e-8)
        return advantages

    def value_loss(
        self, values: Tensor, earlier: Tensor | None, rewards: Tensor, labelled: Tensor
    ) -> Tensor:
        """Return the mean squared error of the values, a scalar; 0 without a known reward.

        Args:
            values: V of the prefixes that end with tokens 0 to T − 1, [B, T].
            earlier: Values of the earlier value head, [B, T]; None not to clip.
            rewards: Reward of each sample, [B]; NaN where unknown.
            labelled: True where token t + 1 has a label, bool [B, T].
        """
        known = labelled & ~rewards.isnan()[:, None]
        wanted = rewards.nan_to_num(0.0)[:, None].float()
        errors = (values - wanted).square()
        if earlier is not None and self.value_clip is not None:
            change = (values - earlier).clamp(-self.value_clip, self.value_clip)
            errors = torch.maximum(errors, (earlier + change - wanted).square())
        return torch.where(known, errors, 0.0).sum() / known.sum().clamp_min(1)


def td_errors(values: Tensor, rewards: Tensor, labelled: Tensor, gamma: float) -> Tensor:
    """Return the TD error of each labelled token, [B, T]; 0 elsewhere and without a reward.

    Args:
        values: V of the prefixes that end with tokens 0 to T − 1, [B, T].
        rewards: Reward of each sample, [B]; NaN where unknown.
        labelled: True where token t + 1 has a label, bool [B, T].
        gamma: Discount.
    """
    length = labelled.shape[1]
    places = torch.arange(length, device=labelled.device)
    last = torch.where(labelled, places, -1).max(dim=1, keepdim=True).values  # [B, 1]
    after = torch.cat([values[:, 1:], values[:, -1:]], dim=1)  # V(s_k) of token k
    reached = torch.where(places == last, rewards.float()[:, None], gamma * after)
    known = labelled & ~rewards.isnan()[:, None]
    return torch.where(known, reached - values, 0.0)
