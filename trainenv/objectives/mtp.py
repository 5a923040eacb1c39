"""Multi-token prediction with weighted tokens (Gloeckle 2024).

    L = Σ_k λ_k·L_k ÷ Σ_k λ_k,   L_k = Σ_t w_tk·CE_k(token t + 1 + k | tokens ≤ t) ÷ Σ_t w_tk

Head k of n predicts the token k places after the next one. λ is 1 for each head by default, so that
the loss stays in nats per token; Gloeckle's sum is n times as large. A weighting gives the weights
w; some divide by the number of labels in place of Σ w. A head without any label is left out.

Without gradients, in a validation or a probe, the loss is that of next-token prediction: it can be
compared with every other objective.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.objectives.head_losses import HeadLosses, Rule
from trainenv.objectives.measures import value_measures
from trainenv.objectives.micro_batch import MicroBatch
from trainenv.objectives.next_token import NextToken
from trainenv.objectives.reference import check_reference, check_tokenizers
from trainenv.objectives.weightings import Uniform, Weighting
from trainenv.tools.checks import count, number
from trainenv.types import EMPHASES, IGNORED, Emphasis, UserError

_VALUE_STEPS = 100  # steps of the value head alone, if the weighting does not say
_SHARE_STEP = 0.1  # of the kept share, for one change of emphasis
_SHARES = (0.1, 1.0)
_SCALE_STEP = 1.25  # of the weight of the further heads, for one change of emphasis
_SCALES = (0.25, 4.0)


class MTP:
    """Multi-token prediction by the heads of a model that `trainenv.models.add_heads` was given.

    The backward pass is lean: one head at a time is computed and differentiated while the loss is
    computed, so that memory holds the logits of one head. `loss.backward()` then differentiates the
    trunk, once. The objective can hence be called in a training loop of your own, for example in
    `compute_loss` of a `Trainer` of transformers.

    Args:
        weighting: Weights of the tokens; uniform by default.
        head_weights: λ of each head, head 0 first, each at least 0; 1 each by default.
        reference: Causal language model with the same tokenizer, for weightings that need one. It
            is not trained and in no snapshot; forks share it.
        reference_ahead: True to compare each head with that head of the reference, False with the
            reference's next-token loss of the same token.
        tokenizer: Tokenizer of the model, or its digest as text, to check the reference's against.
        reference_tokenizer: Tokenizer of the reference, or its digest.
        calls_per_step: Micro-batches of an optimizer step.
        seed: Random seed of the controls.
        lean: False to keep the graphs of all heads until the backward pass, which needs more
            memory and gives the same gradients up to rounding.

    Raises:
        UserError: A value is out of range, or the weighting needs a reference that is missing.
    """

    def __init__(
        self,
        *,
        weighting: Weighting | None = None,
        head_weights: Sequence[float] | None = None,
        reference: nn.Module | None = None,
        reference_ahead: bool = False,
        tokenizer: Any = None,
        reference_tokenizer: Any = None,
        calls_per_step: int = 1,
        seed: int = 0,
        lean: bool = True,
    ) -> None:
        self.weighting: Weighting = Uniform() if weighting is None else weighting
        self._given = self.weighting  # `adjust` changes the one in force
        self.head_weights = None
        if head_weights is not None:
            self.head_weights = tuple(
                number("each of head_weights", one, least=0) for one in head_weights
            )
            if not sum(self.head_weights):
                raise UserError("head_weights must hold one above 0, found none; give 1 for head 0")
        if self.weighting.needs_reference and reference is None:
            raise UserError(
                f"the weighting {type(self.weighting).__name__} needs a reference model, found "
                "none; give reference=model"
            )
        if (tokenizer is None) != (reference_tokenizer is None):
            raise UserError(
                "give the tokenizers of both the model and the reference, or neither; found one"
            )
        if tokenizer is not None:
            check_tokenizers(tokenizer, reference_tokenizer)
        self.reference = reference
        if reference is not None:
            reference.eval()
        self.reference_ahead = reference_ahead
        self.calls_per_step = count("calls_per_step", calls_per_step, least=1)
        self.seed = count("seed", seed, least=0)
        self.lean = lean
        self.calls = 0
        self._head_scale = 1.0
        self._measured: list[dict[str, Tensor]] = []
        self._checked = False
        self._flops: tuple[float, float] | None = None

    def __repr__(self) -> str:
        parts = [f"weighting={self._given!r}", f"head_weights={self.head_weights}"]
        parts += [f"calls_per_step={self.calls_per_step}", f"seed={self.seed}", f"lean={self.lean}"]
        if self.reference is not None:
            parts.append(f"reference={_digest(self.reference)}, ahead={self.reference_ahead}")
        return f"MTP({', '.join(parts)})"

    def __deepcopy__(self, memo: dict[int, Any]) -> MTP:
        made = copy.copy(self)
        made._measured = list(self._measured)
        memo[id(self)] = made
        return made

    # ── the loss ──────────────────────────────────────────────────────────────────────────────────

    def __call__(self, model: nn.Module, micro_batch: Any, /) -> Tensor:
        """Return the loss of a micro-batch as a scalar, in nats per token.

        Args:
            model: Model with future heads.
            micro_batch: Tokens [B, T + 1], or a mapping; see `trainenv.objectives`.
        """
        model = getattr(model, "_orig_mod", model)  # a compiled model is run as it was written
        heads: Any = getattr(model, "future_heads", None)
        self._check(model, heads)
        data = MicroBatch.of(micro_batch)
        if not torch.is_grad_enabled():
            return _next_token(model, data)
        if self.weighting.needs_value and data.reward is None:
            raise UserError(
                "the critic needs micro-batches with `reward`, found "
                f"{type(micro_batch).__name__} without; see the docstring of trainenv.objectives"
            )
        if self.calls % self.calls_per_step == 0:
            self._measured = []
        step = self.step
        self.calls += 1
        if self.weighting.needs_value and step < self.value_steps:
            return self._value_alone(model, heads, data)
        if self.weighting.needs_value and self._refreshes(step):
            heads.remember_values()
        losses = HeadLosses.of(self._rule(heads.count), model, heads, data)
        loss = losses.total()
        self._measured.append(losses.measures.found())
        return loss

    def _rule(self, heads: int) -> Rule:
        """Return the weights in force, for a model with that number of heads."""
        first, *further = self.head_weights or (1.0,) * heads
        return Rule(
            weighting=self.weighting,
            head_weights=(first, *(one * self._head_scale for one in further)),
            reference=self.reference,
            reference_ahead=self.reference_ahead,
            lean=self.lean,
            seed=self.seed * 1_000_003 + self.calls,
        )

    @property
    def step(self) -> int:
        """Number of the optimizer step that the next micro-batch belongs to."""
        return self.calls // self.calls_per_step

    @property
    def value_steps(self) -> int:
        """Steps at the start in which the value head alone is trained."""
        if not self.weighting.needs_value:
            return 0
        steps: int | None = self.weighting.value_steps  # type: ignore[attr-defined]
        return _VALUE_STEPS if steps is None else steps

    def _refreshes(self, step: int) -> bool:
        """Return True at the first micro-batch of a step that refreshes the earlier values."""
        every: int = self.weighting.refresh_steps  # type: ignore[attr-defined]
        first = (self.calls - 1) % self.calls_per_step == 0
        return first and (step - self.value_steps) % every == 0

    def _value_alone(self, model: nn.Module, heads: Any, data: MicroBatch) -> Tensor:
        with torch.no_grad():
            hidden = heads.trunk(model, data.inputs, data.mask).hidden
        values = heads.values(hidden)
        rewards = data.rewards
        labelled = data.labelled(0)
        weighting: Any = self.weighting
        loss: Tensor = weighting.value_loss(values, None, rewards, labelled)
        self._measured.append(value_measures(values.detach(), None, rewards, labelled))
        return loss

    def _check(self, model: nn.Module, heads: Any) -> None:
        if heads is None:
            raise UserError(
                "multi-token prediction needs a model with future heads, found "
                f"{type(model).__name__} without; call trainenv.models.add_heads(model, heads=4) "
                "before you make the optimizer, and wrap the model in nothing but torch.compile"
            )
        if self._checked:
            return
        if self.weighting.needs_value and heads.value is None:
            raise UserError(
                "the critic needs a model with a value head, found none; call "
                "trainenv.models.add_heads(model, value=True)"
            )
        if self.head_weights is not None and len(self.head_weights) != heads.count:
            raise UserError(
                f"head_weights must hold one weight for each of {heads.count} heads, found "
                f"{len(self.head_weights)}; give as many"
            )
        if self.reference is not None and self.weighting.needs_reference:
            self.reference.to(next(model.parameters()).device)
            check_reference(model, self.reference, heads.count, ahead=self.reference_ahead)
        self._checked = True

    # ── steering and state ────────────────────────────────────────────────────────────────────────

    @property
    def emphases(self) -> tuple[Emphasis, ...]:
        """Changes of emphasis that stay within the bounds."""
        kept = self.kept_share
        if kept is None:
            scale = self._head_scale
            changed = {"less": scale / _SCALE_STEP, "more": scale * _SCALE_STEP}
            least, most = _SCALES
        else:
            changed = {"less": kept - _SHARE_STEP, "more": kept + _SHARE_STEP}
            least, most = _SHARES
        return tuple(one for one in EMPHASES if least - 1e-9 <= changed[one] <= most + 1e-9)

    @property
    def kept_share(self) -> float | None:
        """Share of the tokens that each head keeps; None for a weighting that keeps all."""
        return getattr(self.weighting, "kept_share", None)

    @property
    def head_scale(self) -> float:
        """Factor on λ of the heads from 1 on."""
        return self._head_scale

    def adjust(self, emphasis: Emphasis) -> None:
        """Keep 0.1 less or more of the tokens, or weigh heads from 1 on ÷ 1.25 or × 1.25.

        Raises:
            UserError: The change would leave the bounds.
        """
        if emphasis not in self.emphases:
            raise UserError(
                f"the objective can't be given {emphasis!r}: expected one of "
                f"{', '.join(self.emphases)}; its bounds are {_SHARES} for the kept share and "
                f"{_SCALES} for the heads"
            )
        sign = 1 if emphasis == "more" else -1
        if self.kept_share is None:
            self._head_scale *= _SCALE_STEP**sign
        else:
            self._keep(round(self.kept_share + sign * _SHARE_STEP, 9))

    def _keep(self, share: float) -> None:
        inner = getattr(self.weighting, "of", None)
        if inner is None:
            self.weighting = replace(self.weighting, kept_share=share)  # type: ignore[type-var]
        else:
            changed: Any = self.weighting
            self.weighting = replace(changed, of=replace(inner, kept_share=share))

    def state_dict(self) -> dict[str, Any]:
        """Return what changes: number of calls, and the emphasis in force."""
        return {
            "calls": self.calls,
            "head_scale": self._head_scale,
            "kept_share": self.kept_share,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            UserError: The state is of another weighting.
        """
        kept = state["kept_share"]
        if (kept is None) != (self.kept_share is None):
            raise UserError(
                "the snapshot is of another weighting: expected "
                f"kept_share {self.kept_share}, found {kept}; restore it into a run with the same "
                "objective"
            )
        self.calls = int(state["calls"])
        self._head_scale = float(state["head_scale"])
        if kept is not None and kept != self.kept_share:
            self._keep(float(kept))
        self._measured = []

    # ── accounting ────────────────────────────────────────────────────────────────────────────────

    def measured(self) -> dict[str, Tensor]:
        """Return the mean of the numbers of the last step, over its micro-batches, by name."""
        names = {name for one in self._measured for name in one}
        return {
            name: torch.stack([one[name] for one in self._measured if name in one]).mean()
            for name in sorted(names)
        }

    def flops_per_token(
        self, model: nn.Module, context: int | None, of: Callable[[nn.Module], float]
    ) -> float:
        """Return the FLOPs of a training step for one token.

        Args:
            model: Model with future heads.
            context: Length of a sequence in tokens; None if unknown.
            of: Function that returns the FLOPs of forward and backward pass of a model.
        """
        if self._flops is None:
            trunk = of(model)
            heads: Any = model.future_heads
            more = heads.flops_per_token(model, context)
            if self.reference is not None and self.weighting.needs_reference:
                more += of(self.reference) / 3  # a forward pass
            self._flops = (trunk, trunk + more)
        trunk, whole = self._flops
        return trunk / 3 if self.step <= self.value_steps and self.value_steps else whole


def _next_token(model: nn.Module, data: MicroBatch) -> Tensor:
    if data.labels is None and data.mask is None:
        return NextToken()(model, data.tokens)
    keywords = {}
    if data.mask is not None:
        keywords["attention_mask"] = data.mask
    logits = model(data.inputs, **keywords).logits
    labels = data.labels_of(0).flatten()
    return F.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORED)


def _digest(reference: nn.Module) -> str:
    weights = [p.detach().flatten() for p in reference.parameters()]
    total = sum(float(one[:64].double().abs().sum()) for one in weights)
    size = sum(len(one) for one in weights)
    return f"{type(reference).__name__} of {size} parameters ({total:.9g})"
