"""Heads of a causal language model that predict further tokens ahead (Gloeckle 2024).

    add_heads(model, heads=4)               # before the optimizer is made
    run = TrainingRun(model, AdamW(model.parameters()), …, objective=MTP())

Head 0 is the model itself: it predicts the next token, and `generate` uses it alone. Head k
predicts the token k places further on. All heads share the trunk (every block but the last), the
final norm and the output layer. The heads are a submodule of the model, `model.future_heads`:
optimizer, snapshot, checkpoint and fork hold them like all other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.models.spec import spec_of
from trainenv.types import UserError

HeadKind = Literal["block", "linear"]


@dataclass(frozen=True, kw_only=True)
class TrunkOutput:
    """Output of the trunk and of head 0, up to the output layer.

    Attributes:
        hidden: States that the output layer reads, [B, T, W]; `before` if not `whole`.
        before: Input of the last block, [B, T, W]; further heads start from it.
        arguments: Further positional arguments of the last block.
        keywords: Keyword arguments of the last block, such as masks and rotations.
        whole: False where head 0 has yet to run the last block.
    """

    hidden: Tensor
    before: Tensor
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    whole: bool = True


class FutureHeads(nn.Module):
    """Heads 1 to n − 1 of a model, and a value head if asked for.

    A head of kind `block` is a transformer block of the model's own kind, which starts as a copy of
    the last block and reads what that reads. A head of kind `linear` adds a linear map of the final
    states to them, which starts at 0.

    Args:
        model: Causal language model of transformers.
        heads: Number of heads, with the model's own, at least 1.
        kind: Kind of the further heads.
        value: True to add a value head: the probability of success, a function of the final state.

    Attributes:
        count: Number of heads, with the model's own.
        further: Head k by its number, for k from 1 on.
        value: Value head; None without one.
    """

    def __init__(self, model: nn.Module, *, heads: int, kind: HeadKind, value: bool) -> None:
        super().__init__()
        self.count = heads
        self.kind = kind
        blocks = spec_of(model).blocks(model)
        names = {id(module): name for name, module in model.named_modules()}
        self._last_name = names[id(blocks[-1])]
        self._norm_name = _final_norm(model, self._last_name)
        weight = _output_layer(model).weight
        width = int(weight.shape[1])
        self.further = nn.ModuleDict()
        for head in range(1, heads):
            if kind == "block":
                made = copy.deepcopy(blocks[-1])
            else:
                made = nn.Linear(width, width, bias=False, device=weight.device, dtype=weight.dtype)
                nn.init.zeros_(made.weight)
            self.further[str(head)] = made
        self.value: nn.Linear | None = None
        if value:
            # A value starts at one half.
            self.value = nn.Linear(width, 1, device=weight.device, dtype=torch.float32)
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)
            self.register_buffer("anchor_weight", self.value.weight.detach().clone())
            self.register_buffer("anchor_bias", self.value.bias.detach().clone())

    def trunk(
        self, model: nn.Module, tokens: Tensor, mask: Tensor | None = None, *, whole: bool = True
    ) -> TrunkOutput:
        """Run the model up to its output layer.

        Args:
            model: Model that the heads are part of.
            tokens: Tokens, int64 [B, T].
            mask: Attention mask, [B, T]; None to attend to all earlier tokens.
            whole: False to leave the last block to head 0, so that its activations are in memory
                only while that head is computed.
        """
        seen: dict[str, Any] = {}

        def note(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
            rest = dict(keywords)
            further = list(arguments)
            before: Tensor = further.pop(0) if further else rest.pop("hidden_states")
            seen.update(before=before, arguments=tuple(further), keywords=rest)
            return before

        last: Any = self.last_block(model)
        if whole:

            def before_last(_: nn.Module, arguments: tuple[Any, ...], keywords: Any) -> None:
                note(arguments, keywords)

            hook = last.register_forward_pre_hook(before_last, with_kwargs=True)
            try:
                hidden = states(model, tokens, mask)
            finally:
                hook.remove()
            return TrunkOutput(hidden=hidden, **seen)
        own = vars(last).get("forward")
        last.forward = lambda *arguments, **keywords: note(arguments, keywords)
        try:
            states(model, tokens, mask)
        finally:
            del last.forward
            if own is not None:
                last.forward = own
        return TrunkOutput(hidden=seen["before"], whole=False, **seen)

    def logits(
        self, model: nn.Module, head: int, hidden: Tensor, before: Tensor, trunk: TrunkOutput
    ) -> Tensor:
        """Return the logits of a head for the tokens that exist, [B, T − head, V].

        Args:
            model: Model that the heads are part of.
            head: Number of the head, 0 for the model's own.
            hidden: States that the output layer reads, [B, T, W]; not used by head 0
                where the trunk has left the last block to it.
            before: Input of the last block, [B, T, W].
            trunk: Output of the trunk, for the arguments of a block.
        """
        if head:
            states = hidden
            if self.kind == "block":
                states = self.through_block(head, before, trunk.arguments, trunk.keywords)
            return self.read(model, head, states[:, : states.shape[1] - head])
        if not trunk.whole:
            after = self.last_block(model)(before, *trunk.arguments, **trunk.keywords)
            hidden = model.get_submodule(self._norm_name)(_first(after))
        logits: Tensor = _output_layer(model)(hidden)
        return logits

    def last_block(self, model: nn.Module) -> nn.Module:
        """Return the last block of the model; further heads of kind `block` read what it reads."""
        return model.get_submodule(self._last_name)

    def through_block(
        self, head: int, before: Tensor, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> Tensor:
        """Return the states of a further head of kind `block` before the final norm, [B, T, W].

        Args:
            head: Number of the head, from 1 on.
            before: Input of the last block, [B, T, W].
            arguments: Further positional arguments of the last block.
            keywords: Keyword arguments of the last block.
        """
        return _first(self.further[str(head)](before, *arguments, **keywords))

    def read(self, model: nn.Module, head: int, states: Tensor) -> Tensor:
        """Return the logits of a further head, [..., V].

        Args:
            model: Model that the heads are part of.
            head: Number of the head, from 1 on.
            states: States of the head, [..., W]: those of `through_block`, or for linear heads
                those that the output layer reads.
        """
        logits: Tensor = _output_layer(model)(self._read_by_output(model, head, states))
        return logits

    def read_each(self, model: nn.Module, states: Sequence[Tensor]) -> Tensor:
        """Return the logits of heads 1, 2, … at one place each, [B, number of states, V].

        The weights of the output layer are read once for all of them.

        Args:
            model: Model that the heads are part of.
            states: States of each head, [B, W], as for `read`.
        """
        ready = [self._read_by_output(model, head, one) for head, one in enumerate(states, start=1)]
        logits: Tensor = _output_layer(model)(torch.stack(ready, dim=1))
        return logits

    def _read_by_output(self, model: nn.Module, head: int, states: Tensor) -> Tensor:
        """Return the states of a further head that the output layer reads, [..., W]."""
        if self.kind == "block":
            normed: Tensor = model.get_submodule(self._norm_name)(states)
            return normed
        changed: Tensor = states + self.further[str(head)](states)
        return changed

    def values(self, hidden: Tensor) -> Tensor:
        """Return the probability of success of each state, [B, T], from 0 to 1.

        It is computed in float32 at least, because few bits would hide small changes.
        """
        assert self.value is not None
        return _values(hidden, self.value.weight, self.value.bias)

    def earlier_values(self, hidden: Tensor) -> Tensor:
        """Return the values of the value head as it was at the last `remember_values`, [B, T]."""
        with torch.no_grad():
            return _values(hidden, cast(Tensor, self.anchor_weight), cast(Tensor, self.anchor_bias))

    @torch.no_grad()
    def remember_values(self) -> None:
        """Keep the value head as it is now, for `earlier_values`."""
        assert self.value is not None
        cast(Tensor, self.anchor_weight).copy_(self.value.weight)
        cast(Tensor, self.anchor_bias).copy_(self.value.bias)

    def trained(self, model: nn.Module, *, whole: bool = True) -> list[nn.Parameter]:
        """List the parameters behind the trunk: heads, final norm, output layer; each once.

        Args:
            model: Model that the heads are part of.
            whole: False to count the last block to head 0.
        """
        modules: list[nn.Module] = [
            _output_layer(model),
            model.get_submodule(self._norm_name),
            self,
        ]
        if not whole:
            modules.append(self.last_block(model))
        every = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        return list(every.values())

    def flops_per_token(self, model: nn.Module, context: int | None) -> float:
        """Return the training FLOPs of the further heads for one token, the output layer's too."""
        further = self.count - 1
        parameters = sum(p.numel() for p in self.parameters())
        parameters += further * _output_layer(model).weight.numel()
        attention = 0
        if self.kind == "block":
            attention = 12 * further * (spec_of(model).shape(model).width or 0) * (context or 0)
        return float(6 * parameters + attention)


def add_heads(
    model: nn.Module, *, heads: int = 4, kind: HeadKind = "block", value: bool = False
) -> FutureHeads:
    """Add heads that predict further tokens to a causal language model, as `model.future_heads`.

    Call it before the optimizer is made, so that the optimizer holds their parameters.

    Args:
        model: Causal language model of transformers, changed in place.
        heads: Number of heads, with the model's own, at least 1.
        kind: `block` for a transformer block of the model's own kind, or `linear`.
        value: True to add a value head, which the critic's weighting needs.

    Raises:
        UserError: The model has heads already, is no causal language model of transformers, or
            changes its logits behind the output layer.
    """
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise UserError(f"heads must be a whole number, at least 1, found {heads!r}; give 4")
    if kind not in ("block", "linear"):
        raise UserError(f"the kind of a head must be block or linear, found {kind!r}")
    if hasattr(model, "future_heads"):
        raise UserError("the model has future heads already; add them once")
    known = hasattr(model, "base_model") and hasattr(model, "get_output_embeddings")
    if not known or not spec_of(model).blocks(model):
        raise UserError(
            "expected a causal language model of transformers, with blocks and an output layer, "
            f"found {type(model).__name__}; give one, GPT2LMHeadModel for instance"
        )
    made = FutureHeads(model, heads=heads, kind=kind, value=value)
    _check_form(model, made)
    made.train(model.training)
    model.future_heads = made
    return made


def states(model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the states that the output layer reads, [B, T, W].

    Args:
        model: Causal language model of transformers.
        tokens: Tokens, int64 [B, T].
        mask: Attention mask, [B, T]; None to attend to all earlier tokens.
    """
    short = getattr(model, "hidden", None)
    if callable(short) and mask is None:
        found: Tensor = short(tokens)
        return found
    body = cast(Any, model).base_model
    output: Tensor = body(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    return output


def _values(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    precise = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.to(precise), weight.to(precise), bias.to(precise))
    return logits.squeeze(-1).sigmoid()


def _first(output: Any) -> Tensor:
    """Return the output of a block, which in older versions of transformers is a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _output_layer(model: nn.Module) -> Any:
    layer = cast(Any, model).get_output_embeddings()
    if layer is None or not hasattr(layer, "weight"):
        raise UserError(
            f"expected a language model with an output layer, found {type(model).__name__} without "
            "one; give a causal language model"
        )
    return layer


def _final_norm(model: nn.Module, last: str) -> str:
    """Return the name of the norm between the last block and the output layer."""
    owner = last.rpartition(".")[0].rpartition(".")[0]
    children = model.get_submodule(owner).named_children()
    norms = [name for name, child in children if "norm" in type(child).__name__.lower()]
    if not norms:
        raise UserError(
            f"expected a model with a norm behind its last block, found none in {owner or 'it'}; "
            "take another architecture"
        )
    return f"{owner}.{norms[-1]}".lstrip(".")


def _check_form(model: nn.Module, heads: FutureHeads) -> None:
    """Check that head 0, put together from its parts, is the model."""
    layer = _output_layer(model)
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=layer.weight.device)
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            trunk = heads.trunk(model, tokens)
            last = model.get_submodule(heads._last_name)
            after = _first(last(trunk.before, *trunk.arguments, **trunk.keywords))
            normed = model.get_submodule(heads._norm_name)(after)
            same = torch.allclose(normed, trunk.hidden, rtol=1e-3, atol=1e-5)
            logits = model(tokens).logits
            same = same and torch.allclose(layer(trunk.hidden), logits, rtol=1e-3, atol=1e-5)
    finally:
        for module in training:
            module.training = True
    if not same:
        raise UserError(
            "expected a model whose logits are output layer(norm(last block)), found "
            f"{type(model).__name__}, which changes them in between; take another architecture"
        )
