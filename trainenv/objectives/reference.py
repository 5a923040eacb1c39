"""Reference model of a weighting: checked against the model, and asked for its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.types import IGNORED, UserError


def check_tokenizers(ours: Any, theirs: Any) -> None:
    """Check that two tokenizers have the same tokens.

    Args:
        ours: Tokenizer of the model, with `get_vocab()` as in transformers, or its digest as text.
        theirs: Tokenizer of the reference, of the same kind.

    Raises:
        UserError: They differ; names the first difference.
    """
    if isinstance(ours, str) or isinstance(theirs, str):
        if ours != theirs:
            raise _other_tokenizer(f"digest {ours}", f"digest {theirs}")
        return
    first = _vocabulary(ours)
    second = _vocabulary(theirs)
    if len(first) != len(second):
        raise _other_tokenizer(f"{len(first)} tokens", f"{len(second)}")
    for place in sorted(first.keys() | second.keys()):
        if first.get(place) != second.get(place):
            raise _other_tokenizer(
                f"{first.get(place)!r} as token {place}", f"{second.get(place)!r}"
            )


def check_reference(model: nn.Module, reference: nn.Module, heads: int, *, ahead: bool) -> None:
    """Check that the losses of a reference are of the same tokens as those of the model.

    Args:
        model: Model that is trained.
        reference: Reference model.
        heads: Number of heads of the model.
        ahead: True if the reference's own heads are used.

    Raises:
        UserError: The vocabularies differ in size, the reference does not predict each token from
            those before it alone, or it has too few heads; names the mismatch.
    """
    if reference is model:
        raise UserError(
            "the reference must be another model than the one that is trained, found the same; "
            "give a copy.deepcopy of it"
        )
    found = _embeddings(reference)
    expected = _embeddings(model)
    if found != expected:
        raise _other_tokenizer(f"a vocabulary of {expected}", f"{found}")
    if ahead:
        own = getattr(getattr(reference, "future_heads", None), "count", 1)
        if own < heads:
            raise UserError(
                f"a reference with the same look-ahead needs {heads} heads, found {own}; "
                "add heads to it, or leave reference_ahead at False"
            )
    device = next(reference.parameters()).device
    tokens = torch.zeros((1, 4), dtype=torch.int64, device=device)
    other = tokens.clone()
    other[0, -1] = 1
    with torch.no_grad():
        one = _logits(reference, tokens)
        two = _logits(reference, other)
    if one.shape[:2] != tokens.shape:
        raise UserError(
            "the reference must be aligned in time: expected logits for each of 4 places, found "
            f"{list(one.shape)}; give a causal language model"
        )
    if not torch.allclose(one[:, :-1], two[:, :-1], rtol=1e-3, atol=1e-4):
        raise UserError(
            "the reference must be aligned in time: expected a model that predicts each token from "
            "those before it, found one that sees later tokens; give a causal language model"
        )


@torch.no_grad()
def reference_losses(
    reference: nn.Module, tokens: Tensor, labels: Tensor, mask: Tensor | None, heads: int
) -> list[Tensor]:
    """Return the cross-entropy of the reference for the tokens of each head.

    Args:
        reference: Reference model, in evaluation mode.
        tokens: Inputs, int64 [B, T].
        labels: Labels of the places 1 to T, int64 [B, T], −100 without one.
        mask: Attention mask, [B, T]; None to attend to all earlier tokens.
        heads: Number of heads of the reference that are used, at least 1.

    Returns:
        For each head k float32 [B, T − k] in nats; entry t is that of the token at place t + 1 + k,
        predicted by the reference's head k from place t.
    """
    own: Any = getattr(reference, "future_heads", None)
    if heads == 1 or own is None:
        keywords = {}
        if mask is not None:
            keywords["attention_mask"] = mask
        return [_losses(_logits(reference, tokens, **keywords), labels)]
    trunk = own.trunk(reference, tokens, mask)
    return [
        _losses(own.logits(reference, head, trunk.hidden, trunk.before, trunk), labels[:, head:])
        for head in range(heads)
    ]


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    return flat.view(labels.shape)


def _logits(model: nn.Module, tokens: Tensor, **keywords: Any) -> Tensor:
    output = model(tokens, **keywords)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _embeddings(model: nn.Module) -> int | None:
    return next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), None)


def _vocabulary(tokenizer: Any) -> Mapping[int, str]:
    if not hasattr(tokenizer, "get_vocab"):
        raise UserError(
            "a tokenizer must have get_vocab(), as in transformers, or be its digest as text, "
            f"found {type(tokenizer).__name__}"
        )
    return {place: token for token, place in tokenizer.get_vocab().items()}


def _other_tokenizer(expected: str, found: str) -> UserError:
    return UserError(
        f"the reference must have the tokenizer of the model: expected {expected}, found {found}; "
        "give a reference that was trained on the same tokens"
    )
