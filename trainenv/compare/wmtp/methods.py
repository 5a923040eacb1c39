"""Methods that are compared: an objective and a sample set each, with the steps of equal FLOPs.

| method | weighting | samples |
|---|---|---|
| `uniform` | all tokens alike | right |
| `critic` | change of the probability of success | right and wrong, half each |
| `rho1` | highest excess loss over a reference | right |
| `low-excess` | lowest excess loss over a reference: the mistaken opposite of rho1 | right |
| `random` | random tokens, as many as rho1 keeps: control of `rho1` | right |
| `shuffled` | weights of rho1 at random tokens: control of `rho1` | right |
| `shuffled-critic` | weights of the critic at random tokens: control of `critic` | as `critic` |
| `next-token` | next-token prediction without further heads | right |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainenv.config.presets import merge
from trainenv.config.schema import RunConfig
from trainenv.objectives import MTP
from trainenv.run import TrainingRun
from trainenv.types import UserError

_RIGHT: dict[str, Any] = {"tasks": {"samples": "right"}}
_BALANCED: dict[str, Any] = {"tasks": {"samples": "balanced"}}


def _objective(weighting: str, **options: Any) -> dict[str, Any]:
    return {"objective": {"kind": "mtp", "weighting": weighting, "options": options}}


METHODS: Mapping[str, Mapping[str, Any]] = {
    "uniform": _RIGHT | _objective("uniform"),
    "critic": _BALANCED | _objective("critic"),
    "rho1": _RIGHT | _objective("rho1"),
    "low-excess": _RIGHT | _objective("low_excess"),
    "random": _RIGHT | _objective("random"),
    "shuffled": _RIGHT | _objective("shuffled"),
    "shuffled-critic": _BALANCED | _objective("shuffled", shuffled={"of": "critic"}),
    "next-token": _RIGHT | {"objective": {"kind": "next_token"}},
}
"""Name → changes to the preset `mtp`."""
CONTROLS: Mapping[str, tuple[str, ...]] = {
    "uniform": ("next-token",),
    "critic": ("uniform", "shuffled-critic"),
    "rho1": ("uniform", "random", "shuffled", "low-excess"),
}
"""Method → methods that it must be ahead of."""
NEEDS_REFERENCE = ("rho1", "low-excess", "shuffled")
_CORPUS: dict[str, Any] = {"corpus": {"name": "tasks"}}
_LATE = 1 << 40  # micro-batches after which no value head is trained alone


def config_of(
    method: str,
    changes: Mapping[str, Any],
    *,
    seed: int,
    reference: Path | None = None,
    budget: float | None = None,
) -> RunConfig:
    """Return the configuration of a run.

    Args:
        method: Name of the method.
        changes: Changes to the preset `mtp`.
        seed: Random seed of weights and data.
        reference: Weights of the reference, `.safetensors`; None for methods that need none.
        budget: FLOPs to spend on training; None for the configured number of steps.

    Raises:
        UserError: The configuration does not fit, or the budget is less than one step.
    """
    own: dict[str, Any] = {"name": f"wmtp-{method}", "seed": seed}
    values = merge(merge(merge(_CORPUS, changes), METHODS[method]), own)
    if reference is not None and method in NEEDS_REFERENCE:
        values = merge(values, {"objective": {"reference": str(reference)}})
    config = RunConfig.load("mtp", values)
    if budget is None:
        return config
    steps = int(budget / _mean_flops(config))
    if steps < 1:
        raise UserError(f"{method}: the budget of {budget:.3g} FLOPs is less than one step")
    return RunConfig.load("mtp", merge(values, {"steps": steps}))


def reference_config(changes: Mapping[str, Any], further: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of the reference: next-token prediction on right samples.

    Args:
        changes: Changes to the preset `mtp`, those of the runs.
        further: Changes on top.
    """
    own = {"name": "wmtp-reference", "objective": {"kind": "next_token"}, "seed": 1_000_000}
    values = merge(merge(merge(merge(_CORPUS, changes), _RIGHT), own), further)
    return RunConfig.load("mtp", values)


def flops_of(config: RunConfig) -> float:
    """Return the FLOPs that training a run takes, without evaluations."""
    return config.steps * _mean_flops(config)


def _mean_flops(config: RunConfig) -> float:
    """Return the mean FLOPs of a step; those of the value head alone are cheaper."""
    run = TrainingRun.from_config(config)
    alone = run.flops_ahead
    objective = run.objective
    if not isinstance(objective, MTP):
        return alone
    objective.load_state_dict({**objective.state_dict(), "calls": _LATE})
    whole = run.flops_ahead
    share = objective.value_steps / config.steps
    return share * alone + (1 - share) * whole
