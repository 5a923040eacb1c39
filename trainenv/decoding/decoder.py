"""`Decoder`: generate text with a target and a drafter, under a rule.

One round of the loop:

    draft      the drafter proposes up to K tokens a row; each draft is cut before the first token
               at which the draft's largest probability is below the fallback threshold
    verify     the target reads the last known token and the draft of each row, in one call
    decide     the rule keeps a prefix of the draft; a token of the target follows
    continue   rows that have ended leave the batch

Rows advance unevenly: `Reader` crops keys and values of each row to what stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from trainenv.decoding.batch import Batch
from trainenv.decoding.contract import (
    Drafter,
    Generation,
    Observer,
    Rule,
    Sampling,
    Settings,
)
from trainenv.decoding.reader import Reader
from trainenv.decoding.rules.exact import Exact
from trainenv.decoding.sampling import RowGenerators
from trainenv.decoding.schedules import Schedule
from trainenv.tools.checks import whole
from trainenv.types import UserError

Prompts = Tensor | Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """A target, a drafter and a rule that generate together.

    Args:
        target: Causal LM of transformers, in evaluation mode.
        drafter: Source of drafted tokens, see `trainenv.decoding.drafters`.
        rule: Decision about drafted tokens, see `trainenv.decoding.rules`.
        settings: Thresholds and length of a draft.
        schedule: Schedule of the draft length, up to the length of the settings; None to draft that
            many each time. Each row begins anew.
        sampling: Temperature and top-p of the target.
        tokenizer: Tokenizer of the target, compared with that of the draft; None if unknown.
        cached: False to read all tokens at each target call.
        dtype: Type in which probabilities are computed, float32 or float64.

    Raises:
        UserError: The parts do not fit together.
    """

    target: nn.Module
    drafter: Drafter
    rule: Rule = field(default_factory=Exact)
    settings: Settings = field(default_factory=Settings)
    schedule: Schedule | None = None
    sampling: Sampling = field(default_factory=Sampling)
    tokenizer: Any | None = None
    cached: bool = True
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"dtype must be torch.float32 or torch.float64, found {self.dtype}; leave it out"
            )
        reader = Reader(self.target, cached=self.cached, role="target")
        self.drafter.check(reader.vocabulary, self.tokenizer)
        if self.rule.drafts_ahead and self.drafter.needs_states:
            raise UserError(
                f"a rule that drafts ahead must have a drafter that reads tokens only, found "
                f"{type(self.drafter).__name__}, which needs states of the target; take another "
                "rule"
            )
        if self.rule.drafts_ahead and self.schedule is not None:
            raise UserError(
                "a schedule must have a rule that does not draft ahead, found "
                f"{type(self.rule).__name__}; take another rule, or leave the schedule out"
            )
        object.__setattr__(self, "_reader", reader)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        end_tokens: Collection[int] | None = None,
        seed: int = 0,
        observer: Observer | None = None,
    ) -> Generation:
        """Continue each prompt.

        Args:
            prompts: Tokens of each prompt, at least one; a tensor [B, T] without padding, or a list
                of lists of any lengths.
            max_new_tokens: Most tokens generated a row, at least 1.
            end_tokens: Tokens after which a row ends; None for those of the target's
                `generation_config`, an empty list for none.
            seed: Random seed, at least 0.
            observer: Function that gets each verified block.

        Raises:
            UserError: A prompt is empty, or too long for the target.
        """
        begun = perf_counter()
        whole("max_new_tokens", max_new_tokens, least=1)
        whole("seed", seed, least=0)
        reader: Reader = vars(self)["_reader"].fresh()
        given = _rows_of(prompts)
        _check_rows(given, max_new_tokens, reader)
        if end_tokens is None:
            end_tokens = _end_tokens_of(self.target)
        batch = Batch(
            reader=reader,
            session=self.drafter.open(reader.vocabulary),
            needs_states=self.drafter.needs_states,
            rule=self.rule,
            settings=self.settings,
            schedule=self.schedule,
            sampling=self.sampling,
            dtype=self.dtype,
            rows=given,
            max_new_tokens=max_new_tokens,
            end_tokens=frozenset(end_tokens),
            source=RowGenerators(seed, reader.device),
            observer=observer,
        )
        calls = []
        while batch.row_ids:
            calls.append(batch.advance())
        return Generation(
            prompts=tuple(map(tuple, given)),
            new_tokens=tuple(
                tuple(row[len(prompt) :]) for row, prompt in zip(batch.rows, given, strict=True)
            ),
            calls=tuple(calls),
            seconds=perf_counter() - begun,
        )


def _rows_of(prompts: Prompts) -> list[list[int]]:
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2:
            raise UserError(
                f"prompts must be a tensor [B, T] or a list of lists, found a tensor of shape "
                f"{list(prompts.shape)}; give one row a prompt"
            )
        rows: list[list[int]] = prompts.tolist()
        return rows
    return [[int(token) for token in row] for row in prompts]


def _check_rows(rows: list[list[int]], most: int, reader: Reader) -> None:
    if not rows or not all(rows):
        raise UserError(
            "prompts must have at least one token each, found an empty one; begin it with the "
            "tokenizer's beginning-of-text token"
        )
    for token in (min(map(min, rows)), max(map(max, rows))):
        if not 0 <= token < reader.vocabulary:
            raise UserError(
                f"tokens of prompts must be from 0 to {reader.vocabulary - 1}, found {token}; use "
                "the target's tokenizer"
            )
    longest = max(map(len, rows))
    if reader.positions is not None and longest + most > reader.positions:
        raise UserError(
            f"prompt and new tokens must fit into the {reader.positions} positions of the target, "
            f"found {longest} and {most}; shorten the prompt or max_new_tokens"
        )


def _end_tokens_of(target: nn.Module) -> list[int]:
    """Return the end tokens of the target's `generation_config`; none if it has none."""
    found = getattr(getattr(target, "generation_config", None), "eos_token_id", None)
    if found is None:
        return []
    if isinstance(found, int):
        return [found]
    return [int(token) for token in found]
