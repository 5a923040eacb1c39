"""A small causal LM as the draft, with keys and values of its own.

It draws token after token from its own distribution q, which the rule gets in full. A draft that
takes the most likely token has q = 1 for it; the softmax in its place would break exactness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainenv.decoding import sampling
from trainenv.decoding.contract import Draft, DraftRequest, Sampling
from trainenv.decoding.reader import Reader
from trainenv.decoding.vocabulary import check_same


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalDrafter:
    """A causal LM of transformers that drafts.

    Args:
        model: Draft model, in evaluation mode.
        tokenizer: Tokenizer of the draft, compared with that of the target; None if unknown.
        sampling: Sampling of the draft; None for that of the target.
        cached: False to read all tokens at each call.

    Raises:
        UserError: The model cannot serve as a draft.
    """

    model: nn.Module
    tokenizer: object | None = None
    sampling: Sampling | None = None
    cached: bool = True

    def __post_init__(self) -> None:
        reader = Reader(self.model, cached=self.cached, role="draft")
        object.__setattr__(self, "_reader", reader)

    @property
    def needs_states(self) -> bool:
        """False: the draft reads tokens only."""
        return False

    def check(self, vocabulary: int, tokenizer: object | None, /) -> None:
        """Refuse a target with another vocabulary."""
        check_same(
            target=vocabulary,
            draft=self._shared_reader.vocabulary,
            target_tokenizer=tokenizer,
            draft_tokenizer=self.tokenizer,
        )

    def open(self, vocabulary: int, /) -> CausalSession:
        """Return a session that has read nothing."""
        return CausalSession(self._shared_reader.fresh(), vocabulary, self.sampling)

    @property
    def _shared_reader(self) -> Reader:
        reader: Reader = vars(self)["_reader"]
        return reader


class CausalSession:
    """State of a draft model that has read the rows of a batch.

    Args:
        reader: Reader of the draft model that has read nothing.
        vocabulary: Number of tokens of the target.
        own: Sampling of the draft; None for that of the target.
    """

    def __init__(self, reader: Reader, vocabulary: int, own: Sampling | None) -> None:
        self._reader = reader
        self._vocabulary = vocabulary
        self._own = own
        self._read: dict[int, int] = {}  # tokens read of each row

    def propose(self, request: DraftRequest, /) -> Draft:
        """Draw up to `limits` tokens of each row, one call of the model a token."""
        limits = self._limits(request)
        steps = max(limits)
        if steps == 0 or request.stop_below > 1:
            self._read = {
                row: min(self._read.get(row, 0), unchanged)
                for row, unchanged in zip(request.row_ids, request.unchanged, strict=True)
            }
            return empty_draft(len(request.rows), self._reader.device)
        own = self._own or request.sampling
        uniform = self._uniform(request, limits, own)
        starts = [
            min(self._read.get(row, 0), unchanged, len(tokens) - 1)
            for row, unchanged, tokens in zip(
                request.row_ids, request.unchanged, request.rows, strict=True
            )
        ]
        rows = known_tokens(request.rows, self._reader.vocabulary, self._vocabulary)
        logits = self._reader.read(rows, request.row_ids, starts, keep=1)[:, -1]
        calls = 1
        counts = [0] * len(limits)
        running = [limit > 0 for limit in limits]
        tokens: list[Tensor] = []
        chances: list[Tensor] = []
        confidence: list[Tensor] = []
        followed = _Followed(request, own)
        for step in range(steps):
            logits = fitted(logits, self._vocabulary).to(request.dtype)
            if request.stop_below > 0:
                confidence.append(sampling.largest(logits))
                for row, sure in enumerate(confidence[-1].tolist()):
                    running[row] = running[row] and sure >= request.stop_below
                if not any(running):
                    confidence.pop()
                    break
            q = sampling.distribution(logits, own)
            if own.greedy:
                drawn = q.argmax(dim=-1)
            else:
                drawn = sampling.draw(q, uniform[:, step])
                chances.append(q)
            tokens.append(drawn)
            known = drawn.tolist() if request.end_tokens else None
            for row, going in enumerate(running):
                if not going:
                    continue
                counts[row] += 1
                ended = known is not None and known[row] in request.end_tokens
                running[row] = counts[row] < limits[row] and not ended
            followed.note(logits, q, drawn, running)
            if not any(running):
                break
            logits = self._reader.step(drawn)
            calls += 1
        self._read = dict(zip(request.row_ids, self._reader.lengths, strict=True))
        if not tokens:
            return empty_draft(len(limits), self._reader.device, calls=calls)
        return Draft(
            tokens=torch.stack(tokens, dim=1),
            counts=tuple(counts),
            probabilities=torch.stack(chances, dim=1) if chances else None,
            confidence=torch.stack(confidence, dim=1) if confidence else None,
            calls=calls,
            own=followed.own,
        )

    def _limits(self, request: DraftRequest) -> list[int]:
        """Return the limits, lowered where the draft has no more positions."""
        positions = self._reader.positions
        if positions is None:
            return list(request.limits)
        return [
            max(0, min(limit, positions - len(row) + 1))
            for limit, row in zip(request.limits, request.rows, strict=True)
        ]

    def _uniform(self, request: DraftRequest, limits: list[int], own: Sampling) -> Tensor:
        """Return the random numbers of each row, [B, K]; those of a row without a draft are 0."""
        device = self._reader.device
        uniform = torch.zeros(len(request.rows), request.k, dtype=torch.float64, device=device)
        if own.greedy:
            return uniform
        drafting = [row for row, limit in enumerate(limits) if limit > 0]
        ids = [request.row_ids[row] for row in drafting]
        if len(ids) == len(request.rows):
            return request.source.uniform(ids, request.k)
        uniform[torch.tensor(drafting, device=device)] = request.source.uniform(ids, request.k)
        return uniform


class _Followed:
    """Probabilities of the drafted tokens of each row, for a request with a schedule.

    Args:
        request: Request for a draft.
        how: Sampling of the draft.

    Attributes:
        own: Probability of each token of each row; None without a schedule.
    """

    def __init__(self, request: DraftRequest, how: Sampling) -> None:
        self._ends = request.ends
        self._greedy = how.greedy
        self.own: list[list[float]] | None = None
        if self._ends is not None:
            self.own = [[] for _ in request.rows]
            self._top: list[list[float]] = [[] for _ in request.rows]

    def note(self, logits: Tensor, q: Tensor, drawn: Tensor, running: list[bool]) -> None:
        """Note a token of each row, and stop the rows whose block ends after it.

        Args:
            logits: Logits of the draft, [B, V].
            q: Distribution that the tokens were drawn from, [B, V].
            drawn: Drawn tokens, int64 [B].
            running: True for each row whose draft continues; set to False where its block ends.
        """
        if self.own is None or self._ends is None:
            return
        top = sampling.largest(logits)
        own = top
        if not self._greedy:
            own = q.gather(1, drawn.unsqueeze(1)).squeeze(1)
        for row, (mine, most) in enumerate(zip(own.tolist(), top.tolist(), strict=True)):
            self.own[row].append(mine)
            self._top[row].append(most)
            if running[row] and self._ends[row](self.own[row], self._top[row]):
                running[row] = False


def known_tokens(rows: Sequence[list[int]], own: int, vocabulary: int) -> Sequence[list[int]]:
    """Return rows with token 0 for the padding of the target's output layer, if the draft has less.

    Args:
        rows: Tokens of each row.
        own: Number of tokens of the draft.
        vocabulary: Number of tokens of the target.
    """
    if own >= vocabulary:
        return rows
    return [[token if token < own else 0 for token in row] for row in rows]


def fitted(logits: Tensor, vocabulary: int) -> Tensor:
    """Return logits [..., V] of the target's vocabulary: padding cut off, or impossible tokens."""
    missing = vocabulary - logits.shape[-1]
    if missing > 0:
        return nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits[..., :vocabulary]


def empty_draft(rows: int, device: torch.device, calls: int = 0) -> Draft:
    """Return a draft without tokens."""
    tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    return Draft(tokens=tokens, counts=(0,) * rows, calls=calls)
