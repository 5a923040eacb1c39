"""The future heads of the target as the draft (self-speculation of Gloeckle 2024).

    decoder = Decoder(target=model, drafter=HeadsDrafter(model=model))

Head 0, the model itself, verifies. Heads 1 to n − 1 draft from the states at the last verified
token, so that up to n − 1 tokens are drafted without a call of any model:

    last verified token   t        read by the target, its states are known
    next token            t + 1    known: the target has added it
    drafts                t + 2 …  head k proposes the token at t + 1 + k

Each token is drawn from the distribution of its head, given the text up to t only; the rule gets
just that distribution, so that exact rules stay exact. Heads that are blocks run inside the target
call, right after the last block and with its mask, positions and cache, where they have layers of
keys and values of their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainenv.decoding import sampling
from trainenv.decoding.contract import Draft, DraftRequest, Sampling, TargetStates
from trainenv.decoding.drafters.causal import empty_draft
from trainenv.models.future_heads import FutureHeads
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadsDrafter:
    """Heads 1 to n − 1 of the target, which draft n − 1 tokens a target call at most.

    Args:
        model: Target, a model with at least two future heads (`trainenv.models.add_heads`).
        sampling: Sampling of the draft; None for that of the target.

    Raises:
        UserError: The model has no further heads.
    """

    model: nn.Module
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        heads = getattr(self.model, "future_heads", None)
        if heads is None or heads.count < 2:
            raise UserError(
                "a draft by future heads needs a model with at least 2 heads, found "
                f"{getattr(heads, 'count', 1)} in {type(self.model).__name__}; train one with "
                "objective.kind=mtp, or take another drafter"
            )

    @property
    def needs_states(self) -> bool:
        """True: the heads read the states of the target."""
        return True

    def check(self, vocabulary: int, tokenizer: object | None, /) -> None:
        """Refuse a target that cannot be the model of the heads."""
        own = int(cast(Any, self.model).get_output_embeddings().weight.shape[0])
        if own != vocabulary:
            raise UserError(
                "future heads must draft for the model that they are part of, found a target with "
                f"{vocabulary} tokens and heads with {own}; give the same model as both"
            )

    def open(self, vocabulary: int, /) -> HeadsSession:
        """Return a session, which runs the heads in every call of the model while it lives."""
        return HeadsSession(self.model, self.sampling)


class HeadsSession:
    """Heads of a model, and their states in the last call of it.

    Args:
        model: Model with future heads.
        own: Sampling of the draft; None for that of the target.
    """

    def __init__(self, model: nn.Module, own: Sampling | None) -> None:
        self._model = model
        self._heads = cast(FutureHeads, model.future_heads)
        self._own = own
        self._states: list[Tensor] = []  # of each further head in the last call, [B, T, W]
        if self._heads.kind == "block":
            hook = self._heads.last_block(model).register_forward_hook(
                _running(self._heads, self._states), with_kwargs=True
            )
            weakref.finalize(self, hook.remove)

    def propose(self, request: DraftRequest, /) -> Draft:
        """Draw one token from each further head, up to the limits."""
        steps = min(max(request.limits), self._heads.count - 1)
        own = self._own or request.sampling
        uniform = self._uniform(request, own)
        given = request.target_states
        if given is None or steps == 0 or request.stop_below > 1:
            return empty_draft(len(request.rows), next(self._model.parameters()).device)
        tokens: list[Tensor] = []
        chances: list[Tensor] = []
        confidence: list[Tensor] = []
        states = [self._last(head, given) for head in range(1, steps + 1)]
        each = self._heads.read_each(self._model, states).to(request.dtype)  # (B, steps, V)
        for head, logits in enumerate(each.unbind(dim=1), start=1):
            confidence.append(sampling.largest(logits))
            q = sampling.distribution(logits, own)
            if own.greedy:
                tokens.append(q.argmax(dim=-1))
            else:
                tokens.append(sampling.draw(q, uniform[:, head - 1]))
                chances.append(q)
        drawn = torch.stack(tokens, dim=1)
        return Draft(
            tokens=drawn,
            counts=_counts(drawn, request),
            probabilities=torch.stack(chances, dim=1) if chances else None,
            confidence=torch.stack(confidence, dim=1),
        )

    def _last(self, head: int, given: TargetStates) -> Tensor:
        """Return the states of a head at the last verified token of each row, [B, W]."""
        if self._heads.kind == "linear":
            return given.last
        if not self._states:
            raise UserError(
                "future heads must draft for the model that they are part of, found a target that "
                "never called it; give the same model as both"
            )
        states = self._states[head - 1]
        rows = torch.tensor(given.places, device=states.device)
        # The states of the target are those of the last places of the call.
        index = torch.tensor(given.index, device=states.device) - given.states.shape[1]
        return states[rows, index]

    def _uniform(self, request: DraftRequest, own: Sampling) -> Tensor:
        """Return the random numbers of each row, [B, K]; those of a row without a draft are 0."""
        device = next(self._model.parameters()).device
        uniform = torch.zeros(len(request.rows), request.k, dtype=torch.float64, device=device)
        drafting = [row for row, limit in enumerate(request.limits) if limit > 0]
        if own.greedy or not drafting:
            return uniform
        ids = [request.row_ids[row] for row in drafting]
        uniform[torch.tensor(drafting, device=device)] = request.source.uniform(ids, request.k)
        return uniform


def _counts(drawn: Tensor, request: DraftRequest) -> tuple[int, ...]:
    """Return the number of tokens of each row: up to its limit, and no further than an end."""
    counts = []
    for row, limit in zip(drawn.tolist(), request.limits, strict=True):
        ends = (place + 1 for place, token in enumerate(row) if token in request.end_tokens)
        counts.append(min(limit, next(ends, len(row))))
    return tuple(counts)


def _running(heads: FutureHeads, states: list[Tensor]) -> Any:
    """Return a hook behind the last block that runs each further head on the block's input."""

    def run(
        block: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], _: Any
    ) -> None:
        rest = dict(keywords)
        if arguments:
            before, *further = arguments
        else:
            before = rest.pop("hidden_states")
            further = []
        found = []
        for head in range(1, heads.count):
            with _own_layer(heads.further[str(head)], head):
                found.append(heads.through_block(head, before, tuple(further), rest))
        states[:] = found

    return run


@contextmanager
def _own_layer(block: nn.Module, head: int) -> Iterator[None]:
    """Give a block, a copy of the last one, its own layer of keys and values behind all others."""
    numbered: list[Any] = [part for part in block.modules() if hasattr(part, "layer_idx")]
    before = [part.layer_idx for part in numbered]
    try:
        for part, number in zip(numbered, before, strict=True):
            part.layer_idx = number + head
        yield
    finally:
        for part, number in zip(numbered, before, strict=True):
            part.layer_idx = number
