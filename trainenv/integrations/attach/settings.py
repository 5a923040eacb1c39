"""Settings of an attached run: its mode, its configuration, its callback, its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainenv.config.schema import TrainingConfig, validate
from trainenv.integrations.attach.rates import warmup_of
from trainenv.loop import Callback
from trainenv.tools.checks import choice, number
from trainenv.tools.sizes import size_in_words
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.agents.baselines import RollbackRule
    from trainenv.integrations.attach.run import InPlaceRun

Mode = Literal["watch", "rules", "branching"]
BudgetKind = Literal["extra", "included"]
_FULL_LENGTH = 16_000  # steps of the run that the default step counts are for
_WATCHED = 48  # steps from one look of the probe to the next in a run that is only watched
_KEPT = 8  # states that the rules keep in memory to go back to
_SKIPPED = 175  # batches skipped on either side of an alarm, in a run of full length


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of an attached run.

    Attributes:
        mode: `watch`, `rules` or `branching`.
        config: Training configuration.
        extra: True if branches come on top of the budget, false if they are taken off it.
        given: Callback that steers instead of the mode's own; None for that one.
    """

    mode: Mode
    config: TrainingConfig
    extra: bool
    given: Callback | None = None

    def callback(self) -> Callback | None:
        """Return the callback that steers the run; None to watch it."""
        if self.given is not None:
            return self.given
        if self.mode == "watch":
            return None
        if self.mode == "rules":
            return _rules(self.config)
        from trainenv.composition.default_loop import branching

        return branching()

    def statement(self, run: InPlaceRun) -> str:
        """Return what the mode may cost, in a sentence."""
        batches = len(run.held_out)
        measured = ""
        if batches:
            kind = "batch" if batches == 1 else "batches"
            measured = f"; held-out losses are those of {batches} {kind}"
        if self.mode == "watch":
            return f"watching trains no further step and changes no bit of the run{measured}"
        counted = "on top of its budget" if self.extra else "which are taken off its budget"
        settings = self.config.branching
        states = settings.rewind_points + 1
        most = round(settings.max_waste * self.config.steps)
        what = f"branching may train at most {most} further steps, {counted}"
        if self.mode == "rules":
            states = _KEPT + 1
            rule = _rules(self.config)
            most = rule.patience * (rule.rewind + rule.every)
            what = f"rules may train at most {most} steps again, {counted}"
        else:
            states += settings.top_k + 1
        memory = size_in_words(states * run.state_bytes)
        return f"{what}, and keep at most {memory} of states in host memory{measured}"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Choices of a user about an attached run, the same for every framework.

    Args:
        mode: `watch`, `rules` or `branching`.
        budget: `extra` or `included`.
        max_waste: Largest share of the budget that is wasted on branches.
        config: Values of the configuration by section.
        callback: Callback that steers instead of the mode's own; None for that one.

    Raises:
        UserError: A choice is none of the listed ones or out of range.
    """

    mode: Any
    budget: Any = "extra"
    max_waste: Any = 0.1
    config: Mapping[str, Any] | None = None
    callback: Callback | None = None

    def __post_init__(self) -> None:
        choice("mode", self.mode, get_args(Mode))
        choice("budget", self.budget, get_args(BudgetKind))
        number("max_waste", self.max_waste, least=0, most=0.9)
        self.settings(steps=_FULL_LENGTH, lrs=(), seed=0, name="attached")  # checks the keys

    @property
    def steers(self) -> bool:
        """True if the run may be changed."""
        return bool(self.mode != "watch")

    def settings(self, *, steps: int, lrs: Sequence[float], seed: int, name: str) -> Settings:
        """Return the settings of a run.

        Args:
            steps: Number of steps that the framework will take.
            lrs: Scheduled learning rate of each.
            seed: Random seed of the data order after a reorder.
            name: Name of the run.

        Raises:
            UserError: There is no step, or the configuration is not valid.
        """
        if steps < 1:
            raise UserError(f"expected a trainer with at least 1 step ahead, found {steps}")

        def scaled(full: int, least: int = 1) -> int:
            return max(least, round(full * steps / _FULL_LENGTH))

        values: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "steps": steps,
            "reset_warmup": scaled(150, 10),
            "block_steps": scaled(16, 4),
            "schedule": {"kind": "constant", "warmup": warmup_of(lrs)},
            "clip": {"policy": "zclip" if self.mode == "rules" else "none"},
            "validation": {"every": scaled(1000, 10)},
            "monitor": {"block": 1},
            "checkpoints": {"every": scaled(256, 8), "keep_last": 64, "moments": "exact"},
            "interventions": {"allow_skip_batch": True},
            "branching": {
                "default_clip": False,
                "every": scaled(800, 8),
                "rewind": scaled(530, 8),
                "save_every": scaled(256, 8),
                "horizon": scaled(1920, 8),
                "verify_steps": scaled(64, 5),
                "refractory_steps": scaled(430, 8),
                "max_waste": self.max_waste,
                "replayable": False,
            },
        }
        if not self.steers:
            values["checkpoints"]["every"] = steps
            values["validation"]["every"] = 0  # at both ends: the framework has its own
            values["monitor"]["probe_every"] = _WATCHED  # nothing waits for its answer
        for section, given in (self.config or {}).items():
            if isinstance(given, Mapping):
                values[section] = {**values.get(section, {}), **given}
            else:
                values[section] = given
        config = validate(TrainingConfig, values, "the attached run")
        extra = self.budget == "extra"
        return Settings(mode=self.mode, config=config, extra=extra, given=self.callback)


def _rules(config: TrainingConfig) -> RollbackRule:
    from trainenv.integrations.attach.rules import Rules

    every = config.checkpoints.every
    return Rules(
        rewind=every,
        every=every,
        keep=_KEPT,
        skip=max(4, round(_SKIPPED * config.steps / _FULL_LENGTH)),
        lr_scale=0.8,
        patience=20,
        repeats=3,
        clip="zclip",
    )
