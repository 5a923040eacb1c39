"""Micro-batch of an objective: tokens, and for labelled samples labels, reward and mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainenv.types import IGNORED, UserError


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Tokens of a micro-batch, and what is known of them; see `trainenv.objectives`.

    Attributes:
        tokens: Tokens, int64 [B, T + 1].
        labels: Label of the place of each token, int64 [B, T + 1], −100 without one; None if each
            token is its own label.
        reward: Reward of each sample, float32 [B], NaN where unknown; None if unknown for all.
        attention_mask: Attention mask, [B, T + 1]; None to attend to all earlier tokens.
    """

    tokens: Tensor
    labels: Tensor | None = None
    reward: Tensor | None = None
    attention_mask: Tensor | None = None

    @classmethod
    def of(cls, micro_batch: Any) -> MicroBatch:
        """Read a tensor of tokens or a mapping.

        Raises:
            UserError: It is neither, or its tensors do not fit each other; names the first.
        """
        if isinstance(micro_batch, Tensor):
            return cls(tokens=_tokens(micro_batch))
        if not isinstance(micro_batch, Mapping):
            raise UserError(
                "expected a micro-batch of tokens [B, T + 1], or a mapping with `tokens`, found "
                f"{type(micro_batch).__name__}; see the docstring of trainenv.objectives"
            )
        given = micro_batch.get("tokens", micro_batch.get("input_ids"))
        if given is None:
            raise UserError(
                "expected a mapping with `tokens` or `input_ids`, found "
                f"{', '.join(map(str, micro_batch)) or 'an empty one'}; "
                "see the docstring of trainenv.objectives"
            )
        tokens = _tokens(given)
        for name in ("labels", "attention_mask"):
            found = micro_batch.get(name)
            if found is not None and found.shape != tokens.shape:
                raise UserError(
                    f"{name} must have the shape of the tokens, {list(tokens.shape)}, found "
                    f"{list(found.shape)}; give one for each token"
                )
        reward = micro_batch.get("reward")
        if reward is not None and reward.shape != tokens.shape[:1]:
            raise UserError(
                f"reward must hold one number for each of {len(tokens)} samples, found "
                f"{list(reward.shape)}; give [B]"
            )
        return cls(
            tokens=tokens,
            labels=micro_batch.get("labels"),
            reward=reward,
            attention_mask=micro_batch.get("attention_mask"),
        )

    @property
    def inputs(self) -> Tensor:
        """Tokens that are read, int64 [B, T]."""
        return self.tokens[:, :-1]

    @property
    def mask(self) -> Tensor | None:
        """Attention mask of the inputs, [B, T]."""
        if self.attention_mask is None:
            return None
        return self.attention_mask[:, :-1]

    @property
    def rewards(self) -> Tensor:
        """Reward of each sample, float32 [B], NaN where unknown."""
        if self.reward is None:
            return torch.full(self.tokens.shape[:1], torch.nan, device=self.tokens.device)
        return self.reward.float()

    def labels_of(self, head: int) -> Tensor:
        """Return the labels of a head, int64 [B, T − head]; entry t is at place t + 1 + head."""
        if self.labels is None:
            return self.tokens[:, 1 + head :]
        return self.labels[:, 1 + head :]

    def labelled(self, head: int) -> Tensor:
        """Return True where a head has a label, bool [B, T − head]."""
        return self.labels_of(head) != IGNORED


def _tokens(tokens: Any) -> Tensor:
    whole = isinstance(tokens, Tensor) and tokens.dtype in (torch.int64, torch.int32)
    if not whole or tokens.dim() != 2 or tokens.shape[1] < 2:
        found = type(tokens).__name__
        if isinstance(tokens, Tensor):
            found = f"{tokens.dtype} {list(tokens.shape)}"
        raise UserError(
            f"tokens must be int64 [B, T + 1] with T of at least 1, found {found}; "
            "give whole sequences with the token that follows"
        )
    checked: Tensor = tokens
    return checked
