"""Recording of a trace: the target samples texts, and the draft samples blocks at each position.

One pass a group of rows:

    text           the target continues the prompts; the draft reads the result
    blocks         from each position the draft samples D tokens, which the target reads
    second blocks  at every stride-th position, after m tokens of a block and one of the target

All branches of a depth are one call of a model, see `TokenTree`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from trainenv.decoding.contract import Sampling
from trainenv.decoding.sampling import distribution, draw, largest
from trainenv.decoding.traces.measure import log_of, lossy_distances, of_text
from trainenv.decoding.traces.trace import Floats, Ints, Origin, Trace
from trainenv.decoding.traces.tree import TokenTree
from trainenv.tools.checks import whole
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Extent of a trace.

    Args:
        positions: Tokens of each text, N.
        depth: Tokens of each block, D; the greatest draft length that can be replayed.
        stride: Distance between positions with second blocks.
        top_k: Probabilities that are kept of each distribution.
        rows_at_once: Rows in one call of a model; more need more memory.
        starts_at_once: Positions whose second blocks are read at once.
        seed: Random seed of texts and blocks.

    Raises:
        UserError: A number is out of range.
    """

    positions: int = 128
    depth: int = 16
    stride: int = 8
    top_k: int = 16
    rows_at_once: int = 8
    starts_at_once: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        whole("positions", self.positions, least=2)
        for name in ("depth", "stride", "top_k", "rows_at_once", "starts_at_once"):
            whole(name, getattr(self, name), least=1)
        whole("seed", self.seed, least=0)

    @torch.inference_mode()
    def record(
        self,
        target: nn.Module,
        draft: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        origin: Origin,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Trace:
        """Record the trace of a pair on some prompts.

        Args:
            target: Target model, a causal LM of transformers in evaluation mode.
            draft: Draft model, likewise, with the same tokens.
            prompts: Tokens of each row's prompt, at least one row; all of one length.
            origin: Models, text and sampling; see `origin_of`.
            progress: Function that gets the number of rows done, and of all rows.

        Raises:
            UserError: The prompts differ in length, or the text does not fit into the models.
        """
        self._check(target, draft, prompts)
        parts: list[Trace] = []
        for first in range(0, len(prompts), self.rows_at_once):
            rows = torch.tensor(np.array(prompts[first : first + self.rows_at_once]))
            pass_ = _Pass(self, target, draft, origin, rows, first)
            parts.append(pass_.trace())
            progress(min(first + self.rows_at_once, len(prompts)), len(prompts))
        return Trace.joined(parts)

    def _check(self, target: nn.Module, draft: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        lengths = {len(prompt) for prompt in prompts}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(
                f"the prompts of a trace must have one length, at least 1 token, found "
                f"{sorted(lengths)}; cut them to the shortest"
            )
        longest = lengths.pop() + self.positions + 2 * self.depth + 1
        for role, model in (("target", target), ("draft", draft)):
            fits = getattr(getattr(model, "config", None), "max_position_embeddings", None)
            if fits and longest > fits:
                raise UserError(
                    f"prompt, text and blocks must fit into the {fits} positions of the {role}, "
                    f"found {longest}; shorten the prompts, positions or depth"
                )


class _Pass:
    """Recording of one group of rows."""

    def __init__(
        self,
        recorder: Recorder,
        target: nn.Module,
        draft: nn.Module,
        origin: Origin,
        prompts: Tensor,
        first: int,
    ) -> None:
        self._recorder = recorder
        self._origin = origin
        self._sampling = Sampling(temperature=origin.temperature, top_p=origin.top_p)
        self._device = next(target.parameters()).device
        self._prompts = prompts.to(self._device)
        rows = len(prompts)
        self._target = TokenTree(target, rows)
        self._draft = TokenTree(draft, rows)
        seed = np.random.SeedSequence((recorder.seed, first)).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator().manual_seed(int(seed))

    def trace(self) -> Trace:
        recorder = self._recorder
        text, target_logits = self._text()
        draft_logits = self._draft.append(torch.cat([self._prompts, text], 1))
        prompt = self._prompts.shape[1]
        draft_logits = draft_logits[:, prompt - 1 : -1]  # before each position, [R, N, V]
        arrays = of_text(
            text.cpu().numpy(),
            _array(distribution(target_logits, self._sampling)),
            _array(distribution(draft_logits, self._sampling)),
            recorder.top_k,
        )
        arrays |= self._blocks(target_logits, draft_logits)
        arrays["prompt_repeats"] = repeats(self._prompts.cpu().numpy())
        return Trace(origin=self._origin, stride=recorder.stride, **arrays)

    def _text(self) -> tuple[Tensor, Tensor]:
        """Return the sampled text [R, N] and the target's logits before each token, [R, N, V]."""
        logits = self._target.append(self._prompts)[:, -1]
        tokens: list[Tensor] = []
        before: list[Tensor] = []
        for _ in range(self._recorder.positions):
            before.append(logits)
            tokens.append(self._sample(distribution(logits, self._sampling)))
            logits = self._target.append(tokens[-1][:, None])[:, -1]
        return torch.stack(tokens, 1), torch.stack(before, 1)

    def _blocks(self, target_logits: Tensor, draft_logits: Tensor) -> dict[str, Floats]:
        """Return the arrays of the blocks, given the logits before each position, [R, N, V]."""
        recorder = self._recorder
        prompt = self._prompts.shape[1]
        parents = torch.arange(recorder.positions, device=self._device) + (prompt - 1)
        second = slice(None, None, recorder.stride)
        tops: list[Floats] = []
        logs_q: list[Floats] = []
        logs_p: list[Floats] = []
        nats: list[Floats] = []
        distances: list[Floats] = []
        nodes = [parents[second]]  # of each m, the node in which the first block ends, [S]
        ends = [self._sample(distribution(target_logits[:, second], self._sampling))]
        for _ in range(recorder.depth):
            q = distribution(draft_logits, self._sampling)
            p = distribution(target_logits, self._sampling)
            tokens = self._sample(q)
            drawn = tokens.cpu().numpy()
            tops.append(_array(largest(draft_logits)))
            logs_q.append(log_of(_array(q), drawn))
            logs_p.append(log_of(_array(p), drawn))
            nats.append(self._nats(target_logits[:, second], tokens[:, second]))
            raw = target_logits[:, second].softmax(-1)
            distances.append(
                lossy_distances(_array(p[:, second]), _array(q[:, second]), _array(raw))
            )
            size = self._target.size
            draft_logits = self._draft.extend(parents, tokens)
            target_logits = self._target.extend(parents, tokens)
            parents = torch.arange(size, self._target.size, device=self._device)
            nodes.append(parents[second])
            ends.append(self._sample(distribution(target_logits[:, second], self._sampling)))
        second_top, second_nats = self._second(torch.stack(nodes, 1), torch.stack(ends, 2))
        return {
            "block_top": _half(tops),
            "block_q": _half(logs_q),
            "block_p": _half(logs_p),
            "block_nats": _half(nats),
            "block_distance": _half(distances, axis=2),
            "second_top": second_top,
            "second_nats": second_nats,
        }

    def _second(self, nodes: Tensor, ends: Tensor) -> tuple[Floats, Floats]:
        """Return the largest probabilities and nats of the second blocks, [R, S, D + 1, D] each.

        Args:
            nodes: Nodes in which the first blocks end, int64 [S, D + 1].
            ends: Token of the target after each, int64 [R, S, D + 1].
        """
        at_once = self._recorder.starts_at_once
        groups = [
            self._group(nodes[first : first + at_once], ends[:, first : first + at_once])
            for first in range(0, len(nodes), at_once)
        ]
        tops, nats = zip(*groups, strict=True)
        return np.concatenate(tops, 1), np.concatenate(nats, 1)

    def _group(self, nodes: Tensor, ends: Tensor) -> tuple[Floats, Floats]:
        size = self._target.size
        parents = nodes.flatten()
        tokens = ends.flatten(1)
        tops: list[Floats] = []
        nats: list[Floats] = []
        for _ in range(self._recorder.depth):
            before = self._target.size
            draft_logits = self._draft.extend(parents, tokens)
            target_logits = self._target.extend(parents, tokens)
            parents = torch.arange(before, self._target.size, device=self._device)
            tokens = self._sample(distribution(draft_logits, self._sampling))
            tops.append(_array(largest(draft_logits)))
            nats.append(self._nats(target_logits, tokens))
        self._target.crop(size)
        self._draft.crop(size)
        shape = (*ends.shape, self._recorder.depth)
        return _half(tops).reshape(shape), _half(nats).reshape(shape)

    def _nats(self, logits: Tensor, tokens: Tensor) -> Floats:
        """Return −ln p_target of tokens [...]; 0 where the target takes one for certain."""
        index = tokens.unsqueeze(-1)
        found = logits.logsumexp(-1) - logits.gather(-1, index).squeeze(-1)
        certain = distribution(logits, self._sampling).gather(-1, index).squeeze(-1) >= 1
        return _array(found.masked_fill(certain, 0.0))

    def _sample(self, probabilities: Tensor) -> Tensor:
        """Draw one token of each distribution [..., V], int64 [...]."""
        flat = probabilities.flatten(0, -2)
        uniform = torch.rand(len(flat), generator=self._generator, dtype=torch.float64)
        return draw(flat, uniform.to(flat.device)).view(probabilities.shape[:-1])


def origin_of(
    target: nn.Module,
    draft: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    names: tuple[str, str],
    tokenizer_digest: str,
    corpus: str,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Origin:
    """Return the origin of a trace that is recorded from these models.

    Args:
        target: Target model.
        draft: Draft model.
        prompts: Tokens of each prompt.
        names: Names of the target and of the draft.
        tokenizer_digest: Hash of the vocabulary.
        corpus: Name of the corpus of the prompts.
        sampling: Sampling of both models; the default for none.
        seed: Random seed of the recorder.
    """
    sampling = sampling or Sampling()
    return Origin(
        target=names[0],
        draft=names[1],
        target_digest=weights_digest(target),
        draft_digest=weights_digest(draft),
        tokenizer_digest=tokenizer_digest,
        corpus=corpus,
        prompts_digest=xxhash.xxh3_64_hexdigest(np.array(prompts, np.int64).tobytes()),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
    )


def weights_digest(model: nn.Module) -> str:
    """Return a hash of the names and values of a model's weights, 16 hex digits."""
    digest = xxhash.xxh3_64()
    for name, tensor in _weights(model):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def repeats(prompts: Ints) -> Floats:
    """Return the share of each prompt's token pairs that occurred before in it, float32 [R]."""
    shares = []
    for prompt in prompts.tolist():
        pairs = list(pairwise(prompt))
        shares.append((len(pairs) - len(set(pairs))) / max(len(pairs), 1))
    return np.array(shares, np.float32)


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from sorted(model.named_parameters())


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array


def _half(parts: Sequence[Floats], axis: int = -1) -> Floats:
    """Return float16 arrays [R, Q, …] stacked at `axis`."""
    return np.stack(parts, axis).astype(np.float16)
