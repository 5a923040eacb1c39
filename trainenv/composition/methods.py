"""The methods that are compared; each trains the run of a configuration within its budget.

    summary = METHODS["autolrs"](config, folder, watch, stop)

The budget is the compute of `config.steps` optimizer steps. All that a method computes is charged
to it: whatever it evaluates in addition to the validations of `validation.every` costs it steps.
All methods are functions at the top of this module, so that spawned processes can import them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.agents.baselines.rate_paths import PATHS

if TYPE_CHECKING:
    from trainenv.config.schema import RunConfig
    from trainenv.loop import Callback, Watch
    from trainenv.run import TrainingRun

Stop = Callable[[], bool]
Method = Callable[["RunConfig", Path, "Watch", Stop], dict[str, Any]]
"""(config, folder, watch, stop) → the summary of `train`; see `trainenv.compare.Method`."""

_CLIP_AT_ONE = {"clip.policy": "norm", "clip.max_norm": 1.0}
_MEMBERS = 4
_GENERATIONS = 5
_STAGES = 10
_TRIES = 6


def as_set(
    config: RunConfig,
    path: Path,
    watch: Watch,
    stop: Stop,
    *,
    overrides: Mapping[str, Any] | None = None,
    lr_factor: float = 1.0,
) -> dict[str, Any]:
    """Train without interventions, with some values of the configuration changed from the start."""
    from trainenv.config.schema import RunConfig

    changed = RunConfig.load(
        config, {"optimizer.lr": config.optimizer.lr * lr_factor} | dict(overrides or {})
    )
    return _driven(_fresh(changed), path, watch, stop)


def by_hand(
    config: RunConfig, path: Path, watch: Watch, stop: Stop, *, style: str
) -> dict[str, Any]:
    """Roll back and change something whenever the index fires, as one team has published."""
    from trainenv.agents.baselines.rollback_rule import RollbackRule

    return _driven(_fresh(config), path, watch, stop, RollbackRule.in_style(style, config.steps))


def population(
    config: RunConfig, path: Path, watch: Watch, stop: Stop, *, explore: str
) -> dict[str, Any]:
    """Train a population whose members share the budget."""
    from trainenv import planners
    from trainenv.agents.baselines.planner_driven import population

    run = _fresh(config)
    planner = planners.make("pbt", population=_MEMBERS, generations=_GENERATIONS, explore=explore)
    callback = population(
        run,
        planner,
        members=_MEMBERS,
        generations=_GENERATIONS,
        criterion=planners.Score(measure="horizon"),
        seed=config.seed,
    )
    return _driven(run, path, watch, stop, callback)


def autolrs(config: RunConfig, path: Path, watch: Watch, stop: Stop) -> dict[str, Any]:
    """Try learning rates in real steps at the start of each tenth of the run, after the warm-up."""
    from trainenv import planners
    from trainenv.agents.baselines.planner_driven import PlannerCallback

    # In the paper each try takes a tenth of a stage.
    decision = max(1, round(config.steps / _STAGES / 10))
    callback = PlannerCallback(
        planner=planners.make("autolrs", stage=10, tries=_TRIES, share=0.1),
        decision_steps=decision,
        start=config.schedule.warmup,
        every=10 * decision,
        first=(0.1, 0.18, 0.32, 0.56, 1.8, 3.2),
        seed=config.seed,
    )
    return _driven(_fresh(config), path, watch, stop, callback)


def tuned(config: RunConfig, path: Path, watch: Watch, stop: Stop) -> dict[str, Any]:
    """Tune the learning rate and the clip policy with half of the budget, train with the rest."""
    from trainenv.agents.baselines.tuned_schedule import TunedSchedule

    return TunedSchedule(seed=config.seed).train(config, path, watch=watch, stop=stop)


def learned(
    config: RunConfig, path: Path, watch: Watch, stop: Stop, *, algorithm: str
) -> dict[str, Any]:
    """Steer with an agent of Stable-Baselines3 that learns in the world model during the run."""
    from trainenv import worldmodel
    from trainenv.agents.rl.rl_methods import dqn_model, maskable_ppo_model, ppo_model

    methods = {"ppo": ppo_model, "maskable-ppo": maskable_ppo_model, "dqn": dqn_model}
    method = methods[algorithm]
    return method(config, path, watch, stop, model=worldmodel.load_pretrained())


def ppo_real(config: RunConfig, path: Path, watch: Watch, stop: Stop) -> dict[str, Any]:
    """Steer with a PPO agent that spends half of the budget on learning in short real runs."""
    from trainenv.agents.rl.rl_methods import ppo_real

    return ppo_real(config, path, watch, stop)


def hypergradient(config: RunConfig, path: Path, watch: Watch, stop: Stop) -> dict[str, Any]:
    """Let the learning rate follow the hypergradient of the training loss."""
    from trainenv.agents.baselines.hypergradient_descent import HypergradientDescent

    return _driven(_fresh(config), path, watch, stop, HypergradientDescent())


def marthe(config: RunConfig, path: Path, watch: Watch, stop: Stop) -> dict[str, Any]:
    """Let the learning rate follow an online hypergradient of the validation loss."""
    from trainenv.agents.baselines.marthe import Marthe

    return _driven(_fresh(config), path, watch, stop, Marthe())


def open_loop(
    config: RunConfig, path: Path, watch: Watch, stop: Stop, *, name: str
) -> dict[str, Any]:
    """Set the learning rate along a path that no measurement changes."""
    from trainenv.agents.baselines.open_loop import OpenLoop

    return _driven(_fresh(config), path, watch, stop, OpenLoop(path=PATHS[name]))


def ramp(
    config: RunConfig, path: Path, watch: Watch, stop: Stop, *, factor: float
) -> dict[str, Any]:
    """Train with the loop without a model, which proposes the same ramp at each decision."""
    from trainenv.composition.default_loop import ramp

    settings = config.branching.settings(config.steps)
    return _driven(_fresh(config), path, watch, stop, ramp(settings, factor=factor))


def branching(
    config: RunConfig,
    path: Path,
    watch: Watch,
    stop: Stop,
    *,
    share: float = 1.0,
    blind: bool = False,
    planner: str = "shapes",
    without: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train with the whole loop.

    Args:
        config: Configuration of the run.
        path: Folder to record in.
        watch: Function called after each block.
        stop: Function called after each block; True ends the run.
        share: Share of the budget; steps between decisions and the horizon shrink with it.
        blind: Flag: the model is shown nothing of the run.
        planner: Name of the planner.
        without: Settings that switch a part of the loop off.
    """
    from trainenv.composition.default_loop import branching
    from trainenv.config.schema import RunConfig

    changes: dict[str, Any] = {"steps": round(share * config.steps), **(without or {})}
    if share < 1:
        for name in ("every", "horizon", "refractory_steps"):
            least = 4 if name == "horizon" else 1
            steps = getattr(config.branching, name)
            if isinstance(steps, int):  # a share shrinks with the run
                changes[f"branching.{name}"] = max(least, round(share * steps))
    run = _fresh(RunConfig.load(config, changes))
    return _driven(run, path, watch, stop, branching(planner=planner, blind=blind))


def without_trigger(
    config: RunConfig, path: Path, watch: Watch, stop: Stop, *, trigger: str
) -> dict[str, Any]:
    """Train with the loop, which one of its triggers does not wake."""
    kept = [one for one in config.branching.triggers if one != trigger]
    return branching(config, path, watch, stop, without={"branching.triggers": kept})


METHODS: dict[str, Method] = {
    "nothing": as_set,
    "zclip": partial(as_set, overrides={"clip.policy": "zclip"}),
    "arc": partial(as_set, overrides={"clip.policy": "arc"}),
    "spam": partial(as_set, overrides={"clip.policy": "spam"}),
    "skip_step": partial(as_set, overrides={"clip.policy": "skip_step"}),
    "adagc": partial(as_set, overrides={"clip.policy": "adagc"}),
    "gradient_stabilizer": partial(as_set, overrides={"clip.policy": "gradient_stabilizer"}),
    "clip-1.0": partial(as_set, overrides=_CLIP_AT_ONE),
    "palm": partial(by_hand, style="palm"),
    "opt": partial(by_hand, style="opt"),
    "pbt": partial(population, explore="perturb"),
    "pb2": partial(population, explore="pb2"),
    "autolrs": autolrs,
    "tuned": tuned,
    "static-0.1": partial(as_set, lr_factor=0.1),
    "static-0.3": partial(as_set, lr_factor=0.3),
    "static-1": partial(as_set, lr_factor=1.0),
    "static-3": partial(as_set, lr_factor=3.0),
    "ppo-model": partial(learned, algorithm="ppo"),
    "maskable-ppo-model": partial(learned, algorithm="maskable-ppo"),
    "dqn-model": partial(learned, algorithm="dqn"),
    "ppo-real": ppo_real,
    "branching": branching,
    "branching-quarter": partial(branching, share=0.25),
    "blind": partial(branching, blind=True),
    "without-start": partial(without_trigger, trigger="start"),
    "without-range-test": partial(without_trigger, trigger="warmup"),
    "without-rollback": partial(without_trigger, trigger="harm"),
    "without-clipping": partial(branching, without={"branching.default_clip": False}),
    "without-following": partial(branching, without={"branching.untried_change": 0.0}),
    "with-cem": partial(branching, planner="cem"),
    "with-grid": partial(
        branching,
        planner="grid",
        without={"branching.min_gain": 0.001, "branching.max_lr_factor": 2.0},
    ),
    "ramp-up": partial(ramp, factor=1.1),
    "ramp-down": partial(ramp, factor=0.9),
    "hypergradient": hypergradient,
    "marthe": marthe,
    **{name: partial(open_loop, name=name) for name in PATHS},
}


def _fresh(config: RunConfig) -> TrainingRun:
    from trainenv.run import TrainingRun

    return TrainingRun.from_config(config)


def _driven(
    run: TrainingRun, path: Path, watch: Watch, stop: Stop, callback: Callback | None = None
) -> dict[str, Any]:
    from trainenv.loop import train
    from trainenv.records.run_folder import RunFolder

    return train(run, RunFolder.create(path, run.config), callback=callback, watch=watch, stop=stop)
