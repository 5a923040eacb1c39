"""Result of decoding: the text, and the statistics of each target call."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TargetCall:
    """Statistics of one target call; tuples have one entry a row.

    Attributes:
        row_ids: Index in the batch of the rows that took part.
        drafted: Number of drafted tokens that were verified.
        accepted: Number of drafted tokens that stayed.
        emitted: Number of tokens by which the row grew; drafted tokens and those of the target.
        fell_back: True where the draft ended before the length asked for.
        draft_calls: Calls of the draft model before the target call.
        ahead_calls: Calls of the draft model that could run at the time of the target call.
        draft_seconds: Time of the drafting before the target call.
        ahead_seconds: Time of the drafting that could run at the time of the target call. A clock
            with two devices counts the longer of this and `target_seconds`.
        target_seconds: Time of the target call.
        rule_seconds: Time of sampling and of the rule.
    """

    row_ids: tuple[int, ...]
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    emitted: tuple[int, ...]
    fell_back: tuple[bool, ...]
    draft_calls: int
    ahead_calls: int
    draft_seconds: float
    ahead_seconds: float
    target_seconds: float
    rule_seconds: float


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated text and the statistics of how it was made.

    Attributes:
        prompts: Tokens of each prompt.
        new_tokens: Tokens generated after each prompt, with the end token if there was one.
        calls: Statistics of each target call, in order; the first reads the prompts.
        seconds: Time of the whole generation.
    """

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: tuple[tuple[int, ...], ...]
    calls: tuple[TargetCall, ...]
    seconds: float

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Prompt and generated tokens of each row."""
        return tuple(a + b for a, b in zip(self.prompts, self.new_tokens, strict=True))

    @property
    def tokens(self) -> int:
        """Number of generated tokens of all rows."""
        return sum(map(len, self.new_tokens))

    @property
    def target_calls(self) -> int:
        """Number of calls of the target; a batch is one call."""
        return len(self.calls)

    @property
    def draft_calls(self) -> int:
        """Number of calls of the draft model; a batch is one call."""
        return sum(call.draft_calls + call.ahead_calls for call in self.calls)

    @property
    def drafted(self) -> int:
        """Number of drafted tokens that were verified, of all rows."""
        return sum(sum(call.drafted) for call in self.calls)

    @property
    def accepted(self) -> int:
        """Number of drafted tokens that stayed, of all rows."""
        return sum(sum(call.accepted) for call in self.calls)

    @property
    def acceptance(self) -> float:
        """Accepted tokens a verified one; NaN where nothing was drafted.

        It depends on where drafts ended. The overlap Σ min(p, q) of two models is not estimated by
        it; see `distances.overlap`.
        """
        if not self.drafted:
            return math.nan
        return self.accepted / self.drafted

    @property
    def tokens_per_call(self) -> float:
        """Mean number of tokens that a row grew by in a target call."""
        taken = sum(len(call.row_ids) for call in self.calls)
        return self.tokens / max(taken, 1)

    @property
    def seconds_by_part(self) -> dict[str, float]:
        """Seconds of each part: draft, ahead, target, rule, and the rest as `loop`."""
        parts = {
            part: sum(getattr(call, f"{part}_seconds") for call in self.calls)
            for part in ("draft", "ahead", "target", "rule")
        }
        return {**parts, "loop": max(0.0, self.seconds - sum(parts.values()))}

    @property
    def seconds_on_two_devices(self) -> float:
        """Time if drafting ahead and the target call ran at once, each on its own device."""
        saved = sum(
            min(call.ahead_seconds, call.target_seconds) for call in self.calls if call.ahead_calls
        )
        return self.seconds - saved
