"""`Batch`: the rows of one generation, and the loop that advances them.

Rows advance unevenly. Each has its own number of verified tokens, and its keys and values are
cropped to them by the `Reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from trainenv.decoding import proposal as proposals
from trainenv.decoding import sampling as sample
from trainenv.decoding.contract import (
    Block,
    DraftRequest,
    DraftSession,
    Observer,
    RandomSource,
    Rule,
    Sampling,
    Settings,
    TargetCall,
    TargetStates,
)
from trainenv.decoding.proposal import Proposal
from trainenv.decoding.reader import Reader
from trainenv.decoding.schedules import BlockState, Schedule


class Batch:
    """Rows under generation.

    Args:
        reader: Reader of the target that has read nothing.
        session: Session of the drafter.
        needs_states: True to give the drafter the last hidden states of the target.
        rule: Decision about drafted tokens.
        settings: Thresholds and length of a draft.
        schedule: Schedule of the draft length; None for the length of the settings.
        sampling: Temperature and top-p of the target.
        dtype: Type in which probabilities are computed.
        rows: Tokens of each prompt.
        max_new_tokens: Most tokens generated a row.
        end_tokens: Tokens after which a row ends.
        source: Random numbers of each row.
        observer: Function that gets each verified block; None for none.

    Attributes:
        rows: Tokens of each row, prompt included.
        row_ids: Indexes of the rows that have not ended.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        session: DraftSession,
        needs_states: bool,
        rule: Rule,
        settings: Settings,
        schedule: Schedule | None,
        sampling: Sampling,
        dtype: torch.dtype,
        rows: list[list[int]],
        max_new_tokens: int,
        end_tokens: frozenset[int],
        source: RandomSource,
        observer: Observer | None,
    ) -> None:
        self._reader = reader
        self._session = session
        self._needs_states = needs_states
        self._rule = rule
        self._settings = settings
        self._sampling = sampling
        self._dtype = dtype
        self._end_tokens = end_tokens
        self._source = source
        self._observer = observer
        self.rows = [list(row) for row in rows]
        self.row_ids = tuple(range(len(rows)))
        self._ends = [len(row) + max_new_tokens for row in rows]
        # The lists below have one entry a row that has not ended.
        self._verified = [0] * len(rows)  # tokens that the target has read and that stayed
        self._unchanged = [0] * len(rows)  # tokens that are as in the last request for a draft
        self._states: TargetStates | None = None
        self._kept = proposals.nothing(len(rows), reader.device)  # drafted ahead, and survived
        self._blocks: list[BlockState] | None = None
        if schedule is not None:
            self._blocks = [schedule.begin() for _ in rows]

    def advance(self) -> TargetCall:
        """Draft, verify and decide once, and drop the rows that ended."""
        clock = _Clock(self._reader.device)
        drafted = self._draft()
        draft_seconds = clock.lap()
        ahead = proposals.nothing(len(self.row_ids), self._reader.device)
        if self._rule.drafts_ahead:
            ahead = self._draft_ahead(drafted)
        ahead_seconds = clock.lap()
        logits = self._verify(drafted)
        target_seconds = clock.lap()
        judged = drafted
        if any(ahead.counts):
            judged = proposals.with_next(drafted, ahead)
        counts, added = self._decide(judged, drafted, logits)
        grown = [self._grown(place, judged, counts, added) for place in range(len(self.row_ids))]
        call = TargetCall(
            row_ids=self.row_ids,
            drafted=judged.counts,
            accepted=tuple(min(n, len(new)) for n, new in zip(counts, grown, strict=True)),
            emitted=tuple(map(len, grown)),
            fell_back=drafted.fell_back,
            draft_calls=drafted.calls,
            ahead_calls=ahead.calls,
            draft_seconds=draft_seconds,
            ahead_seconds=ahead_seconds,
            target_seconds=target_seconds,
            rule_seconds=clock.lap(),
        )
        self._learn(drafted, counts)
        self._update(drafted, ahead, counts, added, grown)
        return call

    def _learn(self, drafted: Proposal, counts: list[int]) -> None:
        """Update the schedule of each row that had a block."""
        if self._blocks is None:
            return
        for place, (state, tokens) in enumerate(zip(self._blocks, drafted.tokens, strict=True)):
            if not tokens:
                continue
            own: Sequence[float] = [1.0] * len(tokens)
            if drafted.own is not None:
                own = drafted.own[place]
            complete = counts[place] == len(tokens)
            known = counts[place] + (not complete)
            state.update(own[:known], counts[place], complete)

    def _draft(self) -> Proposal:
        """Return the tokens to verify: what was drafted ahead and survived, or a new draft."""
        spare = int(self._rule.bonus)  # the last token of a row may come from the target
        limits = [
            max(0, min(most, room - spare))
            for most, room in zip(self._most(), self._room(), strict=True)
        ]
        waiting = self._needs_states and self._states is None
        for place, kept in enumerate(self._kept.tokens):
            if kept or waiting:
                limits[place] = 0
        fresh = self._request(self._kept, limits)
        if any(self._kept.counts):
            return proposals.either(self._kept, fresh)
        return fresh

    def _most(self) -> list[int]:
        """Return the number of tokens that may be drafted for each row."""
        k = self._settings.k
        if self._blocks is None:
            return [k] * len(self.row_ids)
        return [min(k, state.tokens) for state in self._blocks]

    def _draft_ahead(self, drafted: Proposal) -> Proposal:
        """Return what the draft proposes after its own last tokens, before they are verified."""
        limits = [0] * len(drafted.tokens)
        for place, room in enumerate(self._room()):
            tokens = drafted.tokens[place]
            ended = drafted.fell_back[place] or not self._end_tokens.isdisjoint(tokens)
            if tokens and not ended:
                limits[place] = min(self._settings.k, room - len(tokens))
        return self._request(drafted, limits)

    def _request(self, known: Proposal, limits: list[int]) -> Proposal:
        """Ask the drafter to continue each row after the tokens drafted already."""
        if not any(limits):
            return proposals.nothing(len(limits), self._reader.device)
        rows = self._with(known)
        ends = None
        if self._blocks is not None:
            ends = [state.ends for state in self._blocks]
        draft = self._session.propose(
            DraftRequest(
                rows=rows,
                row_ids=self.row_ids,
                unchanged=tuple(self._unchanged),
                limits=tuple(limits),
                k=self._settings.k,
                stop_below=self._settings.fallback_threshold,
                sampling=self._sampling,
                dtype=self._dtype,
                end_tokens=self._end_tokens,
                source=self._source,
                target_states=self._states,
                ends=ends,
            )
        )
        fresh = proposals.cut(draft, limits, self._settings.fallback_threshold, self._reader.device)
        self._unchanged = [len(row) + count for row, count in zip(rows, fresh.counts, strict=True)]
        return fresh

    def _with(self, drafted: Proposal) -> list[list[int]]:
        return [
            self.rows[row] + tokens
            for row, tokens in zip(self.row_ids, drafted.tokens, strict=True)
        ]

    def _room(self) -> list[int]:
        """Return the number of tokens that each row may still grow by."""
        return [self._ends[row] - len(self.rows[row]) for row in self.row_ids]

    def _verify(self, drafted: Proposal) -> Tensor:
        """Return the target's logits before each drafted token and after the last, [B, N + 1, V].

        Those of a row with a shorter draft come first; the others in its row mean nothing.
        """
        counts = drafted.counts
        places = 1 + max(counts)
        logits = self._reader.read(
            self._with(drafted),
            self.row_ids,
            self._verified,
            keep=places,
            states=self._needs_states,
        ).to(self._dtype)
        if min(counts) == max(counts):
            return logits
        first = torch.tensor(counts, device=logits.device).neg() + (places - 1)
        index = torch.arange(places, device=logits.device) + first.unsqueeze(-1)
        index = index.clamp(max=places - 1).unsqueeze(-1)
        return logits.gather(1, index.expand(-1, -1, logits.shape[-1]))

    def _decide(
        self, judged: Proposal, drafted: Proposal, logits: Tensor
    ) -> tuple[list[int], list[int | None]]:
        """Return the number of accepted tokens of each row, and the token that the target adds.

        Args:
            judged: Tokens that the rule decides about: `drafted`, and in a pipeline the next one.
            drafted: Tokens that the target has read.
            logits: Logits of the target, [B, N + 1, V].
        """
        rows = len(self.row_ids)
        p = sample.distribution(logits, self._sampling)
        uniform = self._uniform(rows, logits.device)
        width = max(judged.counts)
        accepted = [0] * rows
        if width:
            block = Block(
                row_ids=self.row_ids,
                tokens=judged.padded,
                counts=judged.counts,
                q=judged.q,
                p=p[:, :width],
                logits=logits[:, :width],
            )
            if self._observer is not None:
                self._observer(block)
            chance = self._rule.acceptance(block, self._settings)
            stays = sample.accepted(chance, uniform[:, :width]).long().cumprod(dim=1)
            counted = zip(stays.sum(dim=1).tolist(), judged.counts, strict=True)
            accepted = [min(n, count) for n, count in counted]
        rejected = [n < count for n, count in zip(accepted, judged.counts, strict=True)]
        wanted = [
            rejected[row]
            or (
                accepted[row] == len(drafted.tokens[row])
                and (self._rule.bonus or drafted.fell_back[row] or not drafted.tokens[row])
            )
            for row in range(rows)
        ]
        if not any(wanted):
            return accepted, [None] * rows
        every = torch.arange(rows, device=logits.device)
        place = torch.tensor(accepted, device=logits.device).clamp(max=logits.shape[1] - 1)
        p = p[every, place]
        if any(rejected):
            at = torch.tensor([row for row in range(rows) if rejected[row]], device=logits.device)
            q = None
            if judged.q is not None:
                q = judged.q[at, place[at]]
            p[at] = self._rule.replacement(p[at], q, judged.padded[at, place[at]])
        if self._sampling.greedy:
            drawn = p.argmax(dim=-1)
        else:
            drawn = sample.draw(p, uniform[:, -1])
        tokens: list[int] = drawn.tolist()
        return accepted, [
            token if want else None for token, want in zip(tokens, wanted, strict=True)
        ]

    def _uniform(self, rows: int, device: torch.device) -> Tensor:
        """Return K + 2 numbers a row: for each drafted token, the next one, and the target's."""
        count = self._settings.k + 2
        if self._sampling.greedy:  # every probability is 0 or 1
            return torch.full((rows, count), 0.5, dtype=torch.float64, device=device)
        return self._source.uniform(self.row_ids, count)

    def _grown(
        self, place: int, judged: Proposal, counts: list[int], added: list[int | None]
    ) -> list[int]:
        """Return the tokens that a row grows by: up to an end token, and as many as have room."""
        row = self.row_ids[place]
        new = judged.tokens[place][: counts[place]]
        token = added[place]
        if token is not None:
            new = [*new, token]
        ends = (i + 1 for i, found in enumerate(new) if found in self._end_tokens)
        return new[: min(next(ends, len(new)), self._ends[row] - len(self.rows[row]))]

    def _update(
        self,
        drafted: Proposal,
        ahead: Proposal,
        counts: list[int],
        added: list[int | None],
        grown: list[list[int]],
    ) -> None:
        """Grow the rows, and drop those that ended."""
        staying = []
        for place, row in enumerate(self.row_ids):
            before = len(self.rows[row])
            read = min(counts[place], len(drafted.tokens[place]))
            self._verified[place] = before + read
            if added[place] is not None:
                self._unchanged[place] = min(self._unchanged[place], before + counts[place])
            self.rows[row] += grown[place]
            ended = grown[place][-1] in self._end_tokens
            if not ended and len(self.rows[row]) < self._ends[row]:
                staying.append(place)
        if self._needs_states:
            self._states = self._states_of(drafted, counts, staying)
        self._kept = self._surviving(ahead, staying, added)
        self.row_ids = tuple(self.row_ids[place] for place in staying)
        self._verified = [self._verified[place] for place in staying]
        self._unchanged = [self._unchanged[place] for place in staying]
        if self._blocks is not None:
            self._blocks = [self._blocks[place] for place in staying]

    def _surviving(self, ahead: Proposal, staying: list[int], added: list[int | None]) -> Proposal:
        """Return the rest of what was drafted ahead, of the rows whose first token of it stayed."""
        kept = [len(ahead.tokens[place]) > 1 and added[place] is None for place in staying]
        if not any(kept):
            return proposals.nothing(len(staying), self._reader.device)
        rest = proposals.after_next(ahead).select(staying)
        return rest.only(kept)

    def _states_of(
        self, drafted: Proposal, counts: list[int], staying: list[int]
    ) -> TargetStates | None:
        """Return the target's states of the rows that stay."""
        states = self._reader.states
        if states is None or not staying:
            return None
        # A row's last drafted token is in the last slot; those that were rejected come after the
        # last verified one.
        dropped = [max(0, len(drafted.tokens[place]) - counts[place]) for place in staying]
        return TargetStates(
            states=states[torch.tensor(staying, device=states.device)],
            index=tuple(states.shape[1] - 1 - count for count in dropped),
            positions=tuple(self._verified[place] - 1 for place in staying),
            places=tuple(staying),
        )


class _Clock:
    """Times of consecutive parts; on a GPU it waits for the part to end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = perf_counter()
        passed = now - self._last
        self._last = now
        return passed
