"""Generation of samples from any causal language model, in batches.

Each sample has random numbers of its own, a pure function of (seed, prompt, sample, position). So
the samples do not depend on the size of the batches, but for the rounding of logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainenv.data.stressors import philox
from trainenv.evaluation.codec import Codec
from trainenv.types import UserError, as_number, as_whole

_STOP_EVERY = 8  # tokens after which texts are searched for their stops
_POSITIONS = ("n_positions", "max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Sampling of completions.

    Args:
        samples: Number of samples of each prompt.
        max_tokens: Most tokens of a completion.
        temperature: Divisor of the logits; at 0 the most probable token is taken.
        top_p: Probability of the smallest set of most probable tokens to sample from.
        batch_size: Number of rows of one forward pass.
        seed: Random seed.

    Raises:
        UserError: A number is out of range.
    """

    samples: int = 1
    max_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "batch_size"):
            as_whole(getattr(self, name), name, least=1)
        as_whole(self.seed, "seed", least=0)
        as_number(self.temperature, "temperature", least=0)
        if not 0 < as_number(self.top_p, "top_p") <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, found {self.top_p}")

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompts: Sequence[str],
        stops: Sequence[Sequence[str]] = (),
        *,
        done: Callable[[int], None] | None = None,
    ) -> list[list[str]]:
        """Return the completions of each prompt, without the prompt and without stops.

        A prompt that leaves no position of the model has empty completions. The model is in
        evaluation mode meanwhile, and global random states are not used.

        Args:
            model: Module that takes int64 tokens [B, T] and returns logits [B, T, V], bare or as
                the `logits` of a transformers output. Its cache of keys and values is used if it
                has one.
            tokenizer: Tokenizer of ours or of transformers, or a `Codec`.
            prompts: Texts to complete.
            stops: Texts that end a completion, for each prompt.
            done: Function that is called with the number of prompts completed so far.
        """
        codec = Codec.of(tokenizer)
        encoded = [codec.encode(prompt) for prompt in prompts]
        completions: list[list[str]] = [[] for _ in prompts]
        finished = 0
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            for batch in self._batches(encoded, _most_mixed(model) - self.max_tokens):
                texts = self._complete(model, codec, encoded, batch, stops)
                for (place, _), text in zip(batch, texts):
                    completions[place].append(text)
                now = sum(len(texts) == self.samples for texts in completions)
                if done is not None and now > finished:
                    done(now)
                finished = now
        finally:
            for module, training in modes.items():
                module.training = training
        return completions

    def _batches(self, encoded: Sequence[Sequence[int]], mixed: int) -> list[list[tuple[int, int]]]:
        """Return batches of (prompt, sample), in the order of the prompts' lengths.

        Args:
            encoded: Tokens of each prompt.
            mixed: Most tokens of a prompt that shares a batch with shorter ones. Longer prompts,
                and all prompts of models that treat padding as text, share it with their like.
        """
        rows = [(place, sample) for place in range(len(encoded)) for sample in range(self.samples)]
        rows.sort(key=lambda row: len(encoded[row[0]]))
        batches: list[list[tuple[int, int]]] = []
        for row in rows:
            last = batches[-1] if batches else []
            length = len(encoded[row[0]])
            shortest = len(encoded[last[0][0]]) if last else 0
            fits = length == shortest or (shortest > 0 and length <= mixed)
            if last and fits and len(last) < self.batch_size:
                last.append(row)
            else:
                batches.append([row])
        return batches

    @torch.no_grad()
    def _complete(
        self,
        model: nn.Module,
        codec: Codec,
        encoded: Sequence[Sequence[int]],
        batch: Sequence[tuple[int, int]],
        stops: Sequence[Sequence[str]],
    ) -> list[str]:
        """Return one completion of each row of a batch."""
        prompts = [encoded[place] or sorted(codec.ends)[:1] for place, _ in batch]
        length = max(map(len, prompts))
        steps = min(self.max_tokens, _positions(model) - length)
        wanted = [tuple(stops[place]) if stops else () for place, _ in batch]
        made: list[list[int]] = [[] for _ in batch]
        if steps < 1 or not length:
            return ["" for _ in batch]
        device = next(model.parameters()).device
        uniforms = np.stack([self._uniforms(place, sample, steps) for place, sample in batch])
        rows = list(range(len(batch)))  # rows that are not finished
        state = _State(model, prompts, device)
        for step in range(steps):
            chosen = self._choose(state.logits, uniforms[rows, step])  # (rows,)
            for row, token in zip(rows, chosen.tolist()):
                made[row].append(token)
            search = (step + 1) % _STOP_EVERY == 0
            kept = []
            for place, row in enumerate(rows):
                ended = made[row][-1] in codec.ends
                if search and not ended:
                    ended = _cut(codec.decode(made[row]), wanted[row])[1]
                if not ended:
                    kept.append(place)
            if not kept or step + 1 == steps:
                break
            rows = [rows[place] for place in kept]
            state.extend(chosen, kept)
        return [
            _cut(codec.decode(_before_end(tokens, codec)), stop)[0]
            for tokens, stop in zip(made, wanted)
        ]

    def _uniforms(self, place: int, sample: int, steps: int) -> np.ndarray:
        return philox(self.seed, f"evaluation/sample/{sample}", place).random(steps)

    def _choose(self, logits: Tensor, uniforms: np.ndarray) -> Tensor:
        """Return a token of each row from logits [rows, V] and a uniform number each."""
        if not self.temperature:
            return logits.argmax(-1)
        shares = torch.softmax(logits.float() / self.temperature, -1)
        shares, order = shares.sort(dim=-1, descending=True, stable=True)
        sums = shares.cumsum(-1)
        sums = torch.where(sums - shares < self.top_p, sums, 0.0)  # what is before top_p is kept
        total = sums.amax(-1, keepdim=True)
        aims = torch.from_numpy(uniforms).to(sums)[:, None] * total
        places = ((sums <= aims) & (sums > 0)).sum(-1, keepdim=True)
        last = (sums > 0).sum(-1, keepdim=True) - 1
        return order.gather(-1, torch.minimum(places, last))[:, 0]


class _State:
    """Tokens of the unfinished rows, the cache of the model, and the next logits.

    Shorter prompts have empty slots at their left, which are masked. Positions are those of the
    tokens, so that a row is read as if it were alone.

    Args:
        model: Model.
        prompts: Tokens of each row, at least one.
        device: Device of the model.
    """

    def __init__(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        width = max(map(len, prompts))
        rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self._model = model
        self._tokens = torch.tensor(rows, device=device)  # (rows, T)
        self._padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        self._padded = bool(self._padding.any())
        self._cache: Any = None
        self._keyword = _cache_keyword(model)
        self.logits = self._forward(self._tokens)

    def extend(self, chosen: Tensor, kept: list[int]) -> None:
        """Append a token [rows] to the rows, keep only some rows, and compute the next logits."""
        if len(kept) < len(chosen):
            index = torch.tensor(kept, device=chosen.device)
            chosen = chosen[index]
            self._tokens = self._tokens[index]
            self._padding = self._padding[index]
            if self._cache is not None:
                self._cache.batch_select_indices(index)
        self._tokens = torch.cat([self._tokens, chosen[:, None]], 1)
        new = self._tokens
        if self._cache is not None:
            new = chosen[:, None]
        self.logits = self._forward(new)

    def _forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [rows, V] after the last token."""
        if not self._keyword:
            output = self._model(tokens, **self._mask(tokens))
            every: Tensor = getattr(output, "logits", output)  # (rows, T, V)
            return every[:, -1]
        known = {} if self._cache is None else {self._keyword: self._cache}
        known |= self._mask(tokens)
        output = self._model(input_ids=tokens, use_cache=True, **known)
        self._cache = getattr(output, self._keyword, None)
        if not hasattr(self._cache, "batch_select_indices"):
            self._cache = None
            self._keyword = ""
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return attention mask and positions of new tokens [rows, T]; nothing without padding."""
        if not self._padded:
            return {}
        slots = torch.arange(self._tokens.shape[1], device=tokens.device)
        positions = slots - self._padding[:, None]
        return {
            "attention_mask": (positions >= 0).long(),
            "position_ids": positions[:, -tokens.shape[1] :].clamp_min(0),
        }


def _cache_keyword(model: nn.Module) -> str:
    """Return the argument that takes a model's cache of keys and values; empty without one.

    Transformers named it `past_key_values` before it named it `cache`.
    """
    for kind in type(model).__mro__:
        forward = vars(kind).get("forward")
        known = inspect.signature(forward).parameters if callable(forward) else {}
        for name in ("cache", "past_key_values"):
            if name in known:
                return name
    return ""


def _most_mixed(model: nn.Module) -> int:
    """Return the most tokens of a row that may be padded; 0 if the model treats padding as text."""
    known = inspect.signature(model.forward).parameters
    if not {"attention_mask", "position_ids"} <= known.keys():
        return 0
    eager = getattr(getattr(model, "config", None), "_attn_implementation", None) == "eager"
    if eager and next(model.parameters()).dtype == torch.float64:
        return 0  # an empty slot becomes NaN there
    return _positions(model)


def _positions(model: nn.Module) -> int:
    """Return the most tokens that a model takes."""
    config = getattr(model, "config", None)
    found = [getattr(config, name, None) for name in _POSITIONS]
    return next((size for size in found if isinstance(size, int)), 1 << 30)


def _before_end(tokens: Sequence[int], codec: Codec) -> list[int]:
    place = next((place for place, token in enumerate(tokens) if token in codec.ends), len(tokens))
    return list(tokens[:place])


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to its first stop, and if there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        return text, False
    return text[: min(places)], True
