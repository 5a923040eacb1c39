"""`Reader`: a causal LM of transformers that reads rows of different lengths, cached or not.

Rows lie at the right: slot −1 of keys, values, tokens and logits belongs to the last token of each
row, and shorter rows have empty slots at the left, masked out. After a rejection every row keeps
another number of tokens, so each is cropped and moved to the right again. Positions are given by
the tokens, not by the slots: the result is that of reading each row alone, but for rounding.

All layers keep all keys and values, those with a sliding window too: a window is a matter of the
mask, and a cropped window could not be restored.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainenv.types import UserError


class Reader:
    """A language model and what it has read of each row.

    Args:
        model: Causal LM of transformers, in evaluation mode.
        cached: True to keep keys and values, False to read all tokens at each call.
        role: Name of the model in errors.

    Attributes:
        vocabulary: Number of tokens that the model gives logits for.
        lengths: Number of tokens of each row that are cached.
        states: Inputs of the output head in the last call, [B, W, H]; None unless asked for.

    Raises:
        UserError: The model is in training mode, gives no logits, or has no cache that can be
            cropped where `cached` is asked.
    """

    def __init__(self, model: nn.Module, *, cached: bool, role: str) -> None:
        self._model = model
        self._cached = cached
        if model.training:
            raise UserError(
                f"the {role} must be in evaluation mode, found training mode (dropout); call "
                "model.eval()"
            )
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise UserError(
                f"the {role} must be a causal language model, found {type(model).__name__}, an "
                "encoder with a decoder; load another with AutoModelForCausalLM"
            )
        with torch.inference_mode():
            output = model(token, use_cache=cached, return_dict=True)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise UserError(
                f"the {role} must be a causal language model, found {type(model).__name__}, which "
                "gives no logits [B, T, V]; load it with AutoModelForCausalLM"
            )
        self.vocabulary = int(logits.shape[-1])
        self._keyword: str | None = None
        if cached:
            self._keyword = _cache_keyword(output, model, role)
        self._takes_positions = _accepts(model, "position_ids")
        self._takes_keep = _accepts(model, "logits_to_keep")
        self.lengths: list[int] = []
        self.states: Tensor | None = None
        self._row_ids: tuple[int, ...] = ()
        self._rows: list[list[int]] = []  # without a cache: the tokens read so far
        self._cache: Any = None
        self._width = 0  # slots of the cache

    @property
    def positions(self) -> int | None:
        """Number of positions that the model was made for; None if it has no limit."""
        config = getattr(self._model, "config", None)
        return getattr(config, "max_position_embeddings", None)

    def fresh(self) -> Reader:
        """Return a reader of the same model that has read nothing."""
        new = object.__new__(Reader)
        new.__dict__.update(self.__dict__)
        new.lengths = []
        new.states = None
        new._row_ids = ()
        new._rows = []
        new._cache = None
        new._width = 0
        return new

    def read(
        self,
        rows: Sequence[list[int]],
        row_ids: tuple[int, ...],
        starts: Sequence[int],
        *,
        keep: int,
        states: bool = False,
    ) -> Tensor:
        """Read the rest of each row, and return logits of its last places.

        Args:
            rows: All tokens of each row, at least one.
            row_ids: Name of each row; rows of the last call that are left out are forgotten.
            starts: Number of leading tokens of each row whose keys and values hold.
            keep: Number of places to return; a row that is shorter has noise at the left.
            states: True to keep the states that the output head reads, for the same places.

        Returns:
            Logits [B, keep, V]; those in slot −1 follow the last token.
        """
        if not self._cached:
            starts = [0] * len(rows)
            self._rows = [list(row) for row in rows]
        width = max(len(row) - start for row, start in zip(rows, starts, strict=True))
        width = max(width, keep)
        begins = [len(row) - width for row in rows]
        starts = [max(0, begin) for begin in begins]
        tokens = [
            [0] * max(0, -begin) + row[max(0, begin) :]
            for begin, row in zip(begins, rows, strict=True)
        ]
        if self._cached:
            self._align(starts, row_ids)
        self._row_ids = row_ids
        self.lengths = [len(row) for row in rows]
        return self._call(torch.tensor(tokens, device=self.device), keep, states)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each row, int64 [B], and return the logits after it, [B, V]."""
        if not self._cached:
            rows = [[*row, token] for row, token in zip(self._rows, tokens.tolist(), strict=True)]
            return self.read(rows, self._row_ids, self.lengths, keep=1)[:, -1]
        self.lengths = [length + 1 for length in self.lengths]
        return self._call(tokens.unsqueeze(-1), 1, False)[:, -1]

    def _call(self, tokens: Tensor, keep: int, states: bool) -> Tensor:
        """Run the model on the tokens [B, W]; `lengths` counts them already."""
        width = tokens.shape[1]
        total = self._width + width  # without a cache its width stays 0
        arguments: dict[str, Any] = {"use_cache": self._cached, "return_dict": True}
        if self._keyword is not None:
            if self._cache is None:
                self._cache = _new_cache()
            arguments[self._keyword] = self._cache
        if min(self.lengths) < total:
            self._check_padding()
            arguments |= self._padding(width, total)
        if self._takes_keep and keep < width:
            arguments["logits_to_keep"] = keep
        if not states:
            output = self._model(tokens, **arguments)
        else:
            with _head_inputs(self._model) as seen:
                output = self._model(tokens, **arguments)
            self.states = seen[-1][:, -keep:]
        if self._cached:
            self._width = total
        logits: Tensor = output.logits
        return logits[:, -keep:]

    def _check_padding(self) -> None:
        """Refuse empty slots in a model that would turn them into NaN.

        Eager attention masks with the least float64 and takes the softmax in float32, where that is
        −∞: an empty slot, which sees nothing, becomes NaN, and so does what reads it.
        """
        config = getattr(self._model, "config", None)
        eager = getattr(config, "_attn_implementation", None) == "eager"
        if eager and next(self._model.parameters()).dtype == torch.float64:
            raise UserError(
                f"prompts of different lengths must meet float32 weights where attention is eager, "
                f"found float64 in {type(self._model).__name__}; call model.float(), or generate "
                "row by row"
            )

    def _padding(self, width: int, total: int) -> dict[str, Tensor]:
        """Return mask and positions for rows of different lengths."""
        lengths = torch.tensor(self.lengths, device=self.device).unsqueeze(-1)
        slots = torch.arange(total, device=self.device)
        positions = slots - (total - lengths)  # (B, total)
        padding = {"attention_mask": (positions >= 0).long()}
        if self._takes_positions:
            # Beyond the limit are only rows whose result is not used.
            most = self.positions
            padding["position_ids"] = positions[:, -width:].clamp(0, most and most - 1)
        return padding

    def _align(self, starts: list[int], row_ids: tuple[int, ...]) -> None:
        """Crop each row to its first `starts` tokens, and move it to the right."""
        width = max(starts)
        if width == 0:
            self._cache = None
            self._width = 0
            return
        same_rows = row_ids == self._row_ids
        known = dict(zip(self._row_ids, range(len(self._row_ids)), strict=True))
        chosen = [known[row] for row in row_ids]
        # Slot in which the kept tokens of each row end.
        ends = [
            self._width - self.lengths[row] + start
            for row, start in zip(chosen, starts, strict=True)
        ]
        if same_rows and min(ends) == max(ends):
            if ends[0] == self._width and width == self._width:
                return
            for layer in self._cache.layers:
                layer.keys = layer.keys[:, :, ends[0] - width : ends[0]]
                layer.values = layer.values[:, :, ends[0] - width : ends[0]]
        else:
            rows = torch.tensor(chosen, device=self.device)
            last = torch.tensor(ends, device=self.device).unsqueeze(-1)
            slots = torch.arange(-width, 0, device=self.device) + last
            slots = slots.clamp(min=0)[:, None, :, None]  # (B, 1, width, 1); masked where empty
            for layer in self._cache.layers:
                layer.keys = _taken(layer.keys, rows, slots)
                layer.values = _taken(layer.values, rows, slots)
        self._width = width


def _taken(states: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """Return rows and slots of keys or values [B, heads, T, features]."""
    chosen = states[rows]
    return chosen.gather(2, slots.expand(-1, chosen.shape[1], -1, chosen.shape[3]))


def _new_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()  # without a configuration: no layer forgets what is outside a window


def _cache_keyword(output: Any, model: nn.Module, role: str) -> str:
    """Return the name of the cache in a call of the model, and refuse one that cannot be cropped.

    Transformers named it `past_key_values` before version 5.20 or so, and `cache` since.
    """
    for keyword in ("cache", "past_key_values"):
        cache = getattr(output, keyword, None)
        if cache is None:
            continue
        layers = getattr(cache, "layers", ())
        if layers and all(_can_crop(layer) for layer in layers):
            return keyword
    raise UserError(
        f"the {role} must have a cache of keys and values that can be cropped, found none in "
        f"{type(model).__name__}; set cached=False"
    )


def _can_crop(layer: Any) -> bool:
    keys = getattr(layer, "keys", None)
    return isinstance(keys, Tensor) and keys.dim() == 4 and keys.shape[2] == 1


def _accepts(model: nn.Module, name: str) -> bool:
    """Return True if the model's call has a parameter of this name, maybe in a base class."""
    for kind in type(model).__mro__:
        forward = vars(kind).get("forward")
        if forward is None:
            continue
        parameters = inspect.signature(forward).parameters
        if name in parameters:
            return True
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return False
    return False


@contextmanager
def _head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of the output head inside the block, [B, W, H] a call."""
    seen: list[Tensor] = []
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
