"""Losses of the heads of a model on one micro-batch, computed one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.objectives.lean import lean_sum
from trainenv.objectives.measures import WeightMeasures, value_measures
from trainenv.objectives.micro_batch import MicroBatch
from trainenv.objectives.reference import reference_losses
from trainenv.objectives.weightings import Targets, Uniform, Weighting
from trainenv.types import IGNORED


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Weights of heads and tokens, and the way of the backward pass.

    Attributes:
        weighting: Weights of the tokens.
        head_weights: λ of each head.
        reference: Reference model; None without one.
        reference_ahead: True to compare each head with that head of the reference.
        lean: True to differentiate each head's loss before the next is computed.
        seed: Random seed of this micro-batch.
    """

    weighting: Weighting
    head_weights: Sequence[float]
    reference: nn.Module | None
    reference_ahead: bool
    lean: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class HeadLosses:
    """Losses of one micro-batch: one for each head, and one for the value head.

    Attributes:
        rule: Weights of heads and tokens.
        model: Model with future heads.
        heads: Future heads of the model.
        data: Micro-batch.
        trunk: Output of the trunk.
        values: Value of each prefix, [B, T], without gradients; None without a value head.
        advantages: Advantage of each token, [B, T]; None without a value head.
        references: Cross-entropy of the reference for the tokens of each of its heads that is
            used; None without a reference.
        shares: λ_k ÷ Σ λ of each head.
        measures: Numbers that describe the weights, filled along the way.
    """

    rule: Rule
    model: nn.Module
    heads: Any
    data: MicroBatch
    trunk: Any
    values: Tensor | None
    advantages: Tensor | None
    references: Sequence[Tensor] | None
    shares: Sequence[float | Tensor]
    measures: WeightMeasures

    @classmethod
    def of(cls, rule: Rule, model: nn.Module, heads: Any, data: MicroBatch) -> HeadLosses:
        """Run the trunk, and compute all that the losses depend on and that has no gradient."""
        weighting: Any = rule.weighting
        trunk = heads.trunk(model, data.inputs, data.mask, whole=not _leaves_block(rule, model))
        values = advantages = references = None
        if weighting.needs_value:
            with torch.no_grad():
                values = heads.values(trunk.hidden)
                advantages = weighting.advantages(values, data.rewards, data.labelled(0))
        if weighting.needs_reference:
            assert rule.reference is not None
            used = heads.count if rule.reference_ahead else 1
            labels = data.labels_of(0)
            references = reference_losses(rule.reference, data.inputs, labels, data.mask, used)
        return cls(
            rule=rule,
            model=model,
            heads=heads,
            data=data,
            trunk=trunk,
            values=values,
            advantages=advantages,
            references=references,
            shares=_shares(rule.head_weights, data),
            measures=WeightMeasures(),
        )

    def total(self) -> Tensor:
        """Return the loss, lean where there is more than one."""
        several = self.heads.count > 1 or self.rule.weighting.needs_value
        if self.rule.lean and several:
            outputs = (self.trunk.hidden, self.trunk.before)
            parameters = self.heads.trained(self.model, whole=self.trunk.whole)
            return lean_sum(self.each, outputs, parameters)
        first, *others = self.each(self.trunk.hidden, self.trunk.before)
        return sum(others, first)

    def each(self, hidden: Tensor, before: Tensor) -> Iterator[Tensor]:
        """Yield each loss, given the outputs of the trunk or leaves in their place."""
        for head, share in enumerate(self.shares):
            loss = self._of_head(head, hidden, before)
            yield loss * (share.to(loss.dtype) if isinstance(share, Tensor) else share)
        if self.values is not None:
            yield self._of_values(hidden)

    def _of_head(self, head: int, hidden: Tensor, before: Tensor) -> Tensor:
        weighting = self.rule.weighting
        logits = self.heads.logits(self.model, head, hidden, before, self.trunk)
        logits = _precise(logits.flatten(0, 1))
        labels = self.data.labels_of(head)
        if isinstance(weighting, Uniform):
            loss = _mean(logits, labels.flatten(), partial=head > 0)
            self.measures.add_loss(head, loss.detach())
            return loss
        losses = F.cross_entropy(
            logits, labels.flatten(), reduction="none", ignore_index=IGNORED
        ).view(labels.shape)
        del logits
        targets = self._targets(head, losses.detach().float(), labels != IGNORED)
        weights = weighting.weights(targets)
        assert weights is not None
        labels_there = targets.valid.sum()
        divisor = labels_there
        if weighting.divides_by_weights:
            divisor = weights.sum()
        if head:
            divisor = torch.where(divisor > 0, divisor, 1)
        self.measures.add_loss(head, targets.loss.sum() / labels_there)
        self.measures.add_weights(weights, targets.valid, _bounds(weighting))
        weighted: Tensor = (weights * losses).sum() / divisor
        return weighted

    def _targets(self, head: int, losses: Tensor, valid: Tensor) -> Targets:
        reference = advantage = None
        if self.references is not None:
            reference = self.references[0][:, head:]
            if self.rule.reference_ahead:
                reference = self.references[head]
        if self.advantages is not None:
            advantage = self.advantages[:, head:]
        return Targets(
            head=head,
            loss=losses,
            valid=valid,
            reference=reference,
            advantage=advantage,
            generator=torch.Generator().manual_seed((self.rule.seed * 64 + head) % 2**63),
        )

    def _of_values(self, hidden: Tensor) -> Tensor:
        weighting: Any = self.rule.weighting
        if not weighting.value_to_trunk:
            hidden = hidden.detach()
        values = self.heads.values(hidden)
        earlier = self.heads.earlier_values(hidden)
        rewards = self.data.rewards
        labelled = self.data.labelled(0)
        loss: Tensor = weighting.value_loss(values, earlier, rewards, labelled)
        self.measures.add(
            value_measures(values.detach(), earlier, rewards, labelled, self.advantages)
        )
        coefficient: float = weighting.value_coefficient
        return loss * coefficient


def _leaves_block(rule: Rule, model: nn.Module) -> bool:
    """Return True if head 0 runs the last block, so that one head's block is in memory at a time.

    It does not where linear heads or values read the states behind the last block. It also does not
    where activations are recomputed in the backward pass: nothing would be gained.
    """
    heads: Any = model.future_heads
    again = getattr(model, "segment", 0) or any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    )
    blocks = heads.kind == "block" and heads.count > 1
    return bool(rule.lean and blocks and not rule.weighting.needs_value and not again)


def _precise(logits: Tensor) -> Tensor:
    """Return the logits in float32, or float64 if they are."""
    if logits.dtype == torch.float64:
        return logits
    return logits.float()


def _mean(logits: Tensor, labels: Tensor, *, partial: bool) -> Tensor:
    """Return the mean cross-entropy; 0 without labels if `partial`, else NaN."""
    if not partial:
        return F.cross_entropy(logits, labels, ignore_index=IGNORED)
    total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    return total / (labels != IGNORED).sum().clamp_min(1)


def _shares(head_weights: Sequence[float], data: MicroBatch) -> list[float | Tensor]:
    """Return λ_k ÷ Σ λ of each head for which the sequence is long enough."""
    reached = head_weights[: data.inputs.shape[1]]
    if data.labels is None:
        return [one / sum(reached) for one in reached]
    there = [data.labelled(head).any().double() for head in range(len(reached))]
    total = sum(one * known for one, known in zip(reached, there))
    return [one / torch.where(total > 0, total, 1.0) for one in reached]  # type: ignore[arg-type]


def _bounds(weighting: Any) -> tuple[float, float] | None:
    if weighting.needs_value:
        return weighting.low, weighting.high
    return None
