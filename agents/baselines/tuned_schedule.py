"""Schedule tuned before the run: learning rate and clip policy, by TPE.

The Tree-structured Parzen Estimator (Bergstra et al. 2011) is that of Optuna. Half of the budget is
spent on trials, each a short but complete run with its own warm-up and annealing. The other half
trains the run with the best setting.

    summary = TunedSchedule(trials=8).train(config, folder)

Deviations from common practice: trials have the seed of the run, and so its data. The first trial
is the configuration without changes. Stressors that are planted at certain steps are planted at the
same steps of the short runs, or not at all if these end before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.config.schema import RunConfig
from trainenv.loop import Watch, train
from trainenv.records.run_folder import RunFolder
from trainenv.run import make_run
from trainenv.tools.optional import require
from trainenv.training.ledger import Ledger
from trainenv.types import CLIP_POLICIES, ClipName, Run, UserError

if TYPE_CHECKING:
    import optuna

_LEAST = 8  # steps of a trial; where there is budget for fewer, there are fewer trials


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Setting of a trial, and its result.

    Attributes:
        lr_factor: Factor on the configuration's learning rate.
        clip: Clip policy.
        loss: Validation loss at the end of the trial, nats per token; twice that of a uniform guess
            if the trial diverged.
    """

    lr_factor: float
    clip: str
    loss: float = math.nan


@dataclass(frozen=True, kw_only=True)
class TunedSchedule:
    """Tunes the learning rate and the clip policy, then trains, all within the budget of one run.

    Args:
        trials: Number of short runs.
        share: Share of the budget that they may cost, between 0 and 1.
        lr_factors: Lowest and highest factor on the learning rate.
        clips: Clip policies to choose from, besides the configuration's own.
        seed: Random seed of the sampler.

    Raises:
        UserError: A number is out of range, or there is no such policy.
    """

    trials: int = 8
    share: float = 0.5
    lr_factors: tuple[float, float] = (0.03, 3.0)
    clips: tuple[ClipName, ...] = ("none", "zclip", "arc")
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.lr_factors
        if self.trials < 1 or not 0 < self.share < 1 or not 0 < low <= 1 <= high < math.inf:
            raise UserError(
                "trials must be at least 1, share between 0 and 1 and lr_factors two numbers "
                f"around 1, found {self.trials}, {self.share} and {self.lr_factors}"
            )
        if unknown := [clip for clip in self.clips if clip not in CLIP_POLICIES]:
            raise UserError(
                f"clips must be among {', '.join(CLIP_POLICIES)}, found {', '.join(unknown)}"
            )

    def train(
        self,
        config: RunConfig,
        path: Path,
        *,
        watch: Watch = lambda run, window: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Tune, then train, and return the summary of the run, with the trials under `tuned`.

        Args:
            config: Configuration of the run; its steps are the budget of trials and run together.
            path: New or empty folder for the run.
            watch: Function to call after each block of the run.
            stop: Function to call before each trial and after each block of the run; True stops the
                run, after one block at the earliest.

        Raises:
            UserError: Optuna is not installed.
        """
        ledger = Ledger()
        tried = list[Setting]()
        budget = self._budget(config)
        self._try(config, budget, ledger, tried, stop)
        best = min(
            tried,
            key=lambda setting: setting.loss,
            default=Setting(lr_factor=1.0, clip=config.clip.policy),
        )
        steps = max(1, int((budget.total - ledger.total) / budget.step))
        chosen = _shorter(config, steps, best)
        run = make_run(chosen)
        run.ledger = ledger
        folder = RunFolder.create(path, chosen)
        summary = train(run, folder, watch=watch, stop=stop)
        summary["tuned"] = {
            "lr_factor": best.lr_factor,
            "clip": best.clip,
            "trials": [vars(setting) for setting in tried],
        }
        if summary["ended"] != "interrupted":
            folder.finish(summary)
        return summary

    def _budget(self, config: RunConfig) -> _Budget:
        run = make_run(config)
        monitor = config.monitor
        probe = (
            monitor.probe_sequences
            * config.model.context
            / (3 * config.batch_size * config.model.context)
        )
        probes = 0.0  # per step
        if monitor.enabled and monitor.probe_every:
            probes = 1 / monitor.probe_every
        step = run.flops_ahead * (1 + probe * probes)
        total = config.steps * step
        spare = self.share * total
        trials = min(self.trials, int(spare / (_LEAST * step + run.flops_per_evaluation)))
        steps = 0
        if trials:
            steps = int((spare / trials - run.flops_per_evaluation) / step)
        return _Budget(total=total, step=step, trials=trials, steps=steps)

    def _try(
        self,
        config: RunConfig,
        budget: _Budget,
        ledger: Ledger,
        tried: list[Setting],
        stop: Callable[[], bool],
    ) -> None:
        if not budget.trials:
            return
        study = _study(self.seed, startup=max(2, self.trials // 2))
        clips = list(dict.fromkeys([config.clip.policy, *self.clips]))
        study.enqueue_trial({"lr_factor": 1.0, "clip": config.clip.policy})
        for _ in range(budget.trials):
            if stop():
                return
            trial = study.ask()
            factor = trial.suggest_float("lr_factor", *self.lr_factors, log=True)
            setting = Setting(lr_factor=factor, clip=trial.suggest_categorical("clip", clips))
            run = make_run(_shorter(config, budget.steps, setting))
            loss = _trained(run)
            ledger.charge("plan", run.ledger.total)
            tried.append(Setting(lr_factor=factor, clip=setting.clip, loss=loss))
            study.tell(trial, loss)


@dataclass(frozen=True, kw_only=True)
class _Budget:
    """Budget of trials and run.

    Attributes:
        total: FLOPs of trials and run together.
        step: FLOPs of a step with its share of the monitor's probes.
        trials: Number of trials.
        steps: Steps of each trial.
    """

    total: float
    step: float
    trials: int
    steps: int


def _trained(run: Run) -> float:
    """Train a run and return its validation loss, at most twice that of a uniform guess."""
    cap = 2 * run.uniform_loss
    while not run.done:
        run.advance(min(run.config.monitor.block, run.horizon.end - run.step))
        if run.diverged:
            return cap
    loss = run.evaluate()
    return min(loss, cap) if math.isfinite(loss) else cap


def _shorter(config: RunConfig, steps: int, setting: Setting) -> RunConfig:
    """Return the configuration with a setting and fewer steps; the warm-up keeps its share."""
    return RunConfig.load(
        config,
        {
            "steps": steps,
            "schedule.warmup": round(config.schedule.warmup * steps / config.steps),
            "optimizer.lr": config.optimizer.lr * setting.lr_factor,
            "clip.policy": setting.clip,
        },
    )


def _study(seed: int, startup: int) -> optuna.Study:
    require("optuna", "tuning")
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        return optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        )
    finally:
        optuna.logging.set_verbosity(before)
