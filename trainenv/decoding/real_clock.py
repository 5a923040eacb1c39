"""The real clock: the decoder itself generates, and its time counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from trainenv.decoding import rules
from trainenv.decoding.clocks import TracedTask
from trainenv.decoding.contract import Drafter, Generation, Sampling, Settings
from trainenv.decoding.decoder import Decoder
from trainenv.decoding.traces import Score, replay
from trainenv.types import UserError

ALONE = Settings(fallback_threshold=2.0, k=1)
"""Settings under which the draft is never called."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """Models of a task that decode for the real clock.

    Args:
        target: Target model.
        drafter: Drafter.
        prompts: Tokens of each prompt.
        sampling: Sampling of the target.
    """

    target: nn.Module = field(repr=False)
    drafter: Drafter = field(repr=False)
    prompts: Sequence[Sequence[int]] = field(repr=False)
    sampling: Sampling = field(default_factory=Sampling)

    def generate(
        self, settings: Settings, rule: str, *, max_new_tokens: int, seed: int = 0
    ) -> Generation:
        """Continue the prompts, each as a batch of one, without an end token."""
        decoder = Decoder(
            target=self.target,
            drafter=self.drafter,
            rule=rules.make(rule),
            settings=settings,
            sampling=self.sampling,
        )
        parts = [
            decoder.generate(
                [list(prompt)], max_new_tokens=max_new_tokens, end_tokens=[], seed=seed + place
            )
            for place, prompt in enumerate(self.prompts)
        ]
        return joined(parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class RealClock:
    """Measured times; acceptance and distance come from the trace, where they are estimated better.

    Two measurements differ, so an environment with this clock does not repeat bit for bit.

    Args:
        models: Models of each task, by the name of the task.
        max_new_tokens: Tokens that are generated after each prompt.
        seed: Random seed of the generations.
    """

    models: Mapping[str, Models] = field(repr=False)
    max_new_tokens: int = 64
    seed: int = 0
    _alone: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def score(self, task: TracedTask, settings: Settings, rule: str, /) -> Score:
        """Return the measured score of settings under a rule on a task.

        Raises:
            UserError: The models of the task are not known.
        """
        if task.name not in self.models:
            raise UserError(
                f"the real clock needs the models of {task.name}, found those of "
                f"{', '.join(self.models) or 'none'}; give them"
            )
        models = self.models[task.name]
        if task.name not in self._alone:
            alone = models.generate(
                ALONE, "exact", max_new_tokens=self.max_new_tokens, seed=self.seed
            )
            self._alone[task.name] = alone.seconds / alone.tokens
        found = models.generate(settings, rule, max_new_tokens=self.max_new_tokens, seed=self.seed)
        seconds = found.seconds
        if rule == "pipelined":
            seconds = found.seconds_on_two_devices
        return replace(
            replay(task.trace, settings, task.costs, rule),
            time_per_token=seconds / found.tokens,
            speedup=self._alone[task.name] * found.tokens / seconds,
            tokens_per_call=found.tokens_per_call,
            tokens=found.tokens,
        )


def joined(parts: Sequence[Generation]) -> Generation:
    """Return one generation with the prompts, calls and time of all."""
    return Generation(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        new_tokens=tuple(tokens for part in parts for tokens in part.new_tokens),
        calls=tuple(call for part in parts for call in part.calls),
        seconds=sum(part.seconds for part in parts),
    )
