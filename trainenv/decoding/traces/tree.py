"""A tree of tokens that a model reads, each node once: many continuations of one text.

Every node sees its ancestors and itself only, by a mask over the cached keys and values. A depth of
all branches is one call of the model, and the result is that of reading each branch alone, but for
rounding.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class TokenTree:
    """Tokens that a causal LM has read, for R rows with trees of one shape.

    Args:
        model: Causal LM of transformers with a cache, in evaluation mode.
        rows: Number of rows, R.

    Attributes:
        size: Number of nodes of each row.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        from transformers import DynamicCache

        self._model = model
        self._rows = rows
        weight = next(model.parameters())
        self._device = weight.device
        self._dtype = weight.dtype
        self._cache: Any = DynamicCache()
        # Transformers named it `past_key_values` before version 5.20 or so, and `cache` since.
        known = inspect.signature(model.forward).parameters
        self._keyword = "cache" if "cache" in known else "past_key_values"
        self._sees = torch.zeros(0, 0, dtype=torch.bool, device=self._device)  # [size, size]
        self._depths = torch.zeros(0, dtype=torch.int64, device=self._device)

    @property
    def size(self) -> int:
        """Number of nodes of each row."""
        return len(self._depths)

    def append(self, tokens: Tensor) -> Tensor:
        """Read a chain of tokens [R, T] after the last node, and return logits [R, T, V]."""
        count = tokens.shape[1]
        chain = torch.ones(count, count, dtype=torch.bool, device=self._device).tril()
        known = torch.zeros(self.size, dtype=torch.bool, device=self._device)
        depth = 0
        if self.size:
            known = self._sees[-1]
            depth = int(self._depths[-1]) + 1
        sees = torch.cat([known.expand(count, -1), chain], 1)
        return self._read(tokens, sees, depth + torch.arange(count, device=self._device))

    def extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Read one child of each of some nodes.

        Args:
            parents: Indexes of the parents, int64 [Q].
            tokens: Tokens of the children, int64 [R, Q].

        Returns:
            Logits after each child, [R, Q, V]; its index is `size` before the call plus its place.
        """
        own = torch.eye(len(parents), dtype=torch.bool, device=self._device)
        sees = torch.cat([self._sees[parents], own], 1)
        return self._read(tokens, sees, self._depths[parents] + 1)

    def crop(self, size: int) -> None:
        """Forget all nodes but the first `size`."""
        for layer in self._cache.layers:
            layer.keys = layer.keys[:, :, :size]
            layer.values = layer.values[:, :, :size]
        self._sees = self._sees[:size, :size]
        self._depths = self._depths[:size]

    def _read(self, tokens: Tensor, sees: Tensor, depths: Tensor) -> Tensor:
        """Read nodes [R, Q] that see others by `sees`, bool [Q, size + Q], at depths [Q]."""
        mask = torch.zeros(sees.shape, dtype=self._dtype, device=self._device)
        mask = mask.masked_fill(~sees, torch.finfo(self._dtype).min)
        arguments: dict[str, Any] = {self._keyword: self._cache}
        output = self._model(
            tokens,
            attention_mask=mask.expand(self._rows, 1, -1, -1),
            position_ids=depths.expand(self._rows, -1),
            use_cache=True,
            return_dict=True,
            **arguments,
        )
        above = torch.zeros(
            self.size, sees.shape[1] - self.size, dtype=torch.bool, device=self._device
        )
        self._sees = torch.cat([torch.cat([self._sees, above], 1), sees], 0)
        self._depths = torch.cat([self._depths, depths])
        logits: Tensor = output.logits
        return logits
