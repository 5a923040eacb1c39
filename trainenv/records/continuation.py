"""Runs that continue others: a finished run that is extended, and a fork of a recorded state.

    extend(Path("runs/mine"), steps=2000)
    forked = fork(Path("runs/mine"), 400, {"optimizer.lr": 1e-3}, out=Path("runs/lower"))
    trainenv.train(forked.run, forked.folder)

A fork is a run of its own, in a folder of its own. `parent.json` in it names the state that it
starts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainenv.checkpoints import FOLDER
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.config.written import as_yaml
from trainenv.records.made_of import MadeOf
from trainenv.records.run_folder import CALLBACK_STATE, REWINDS, RunFolder
from trainenv.run import TrainingRun
from trainenv.tools.atomic_files import write_file, write_json
from trainenv.tools.paths import absolute
from trainenv.training import schedules, snapshots
from trainenv.types import Snapshot, UserError

PARENT = "parent.json"
_CONFIG = "config.yaml"
_SUMMARY = "summary.json"
# Parts of a state that do not fit once a section of the configuration has changed, each with the
# words for them.
_REPLACED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "optimizer": (("optimizer.name",), "the optimizer's moments"),
    "clip": (("clip",), "the state of the clip policy"),
    "monitor": (
        ("monitor", "corpus", "objective", "tasks", "span_corruption"),
        "the history of the uncertainty index",
    ),
    "objective": (("objective",), "the state of the objective"),
    "order": (("corpus", "seed", "tasks", "batch_size"), "skipped and reordered data"),
    "flagged": (("corpus", "seed", "tasks", "batch_size"), ""),
    "scaler": (("precision",), ""),
    "observed": (("optimizer.name",), ""),
    "evaluated": (("optimizer.name",), ""),
}
_PLAN = ("steps", "schedule")  # sections that the learning rate over the budget depends on


def extend(path: Path, steps: int) -> str:
    """Give a finished run a larger budget, and return what becomes of its learning rate.

    From the step that it ended at, the rate is that of a run which had the larger budget from the
    start. Steps that went into branches stay spent.

    Args:
        path: Folder of the run.
        steps: New budget in optimizer steps.

    Raises:
        UserError: See `check_extension`; or a file cannot be written.
    """
    config = check_extension(path, steps)
    longer = RunConfig.load(config, {"steps": steps})
    with CheckpointStore(path / FOLDER, **config.checkpoints.model_dump()) as store:
        snapshot = store.load()
        horizon = schedules.Horizon(**snapshot.state["horizon"])
        extended = horizon
        if horizon.end <= snapshot.step:  # else it was extended by a process that was killed
            extended = _planned(longer, horizon.end + steps - config.steps)
            state = {**snapshot.state, "horizon": extended.state_dict()}
            store.save(replace(snapshot, state=state), moments="exact", wait=True)
        made = MadeOf.read(path)
        if made is not None:
            replace(made, config=longer.model_dump(mode="json")).write(path)
        write_file(path / _CONFIG, as_yaml(longer))
        (path / _SUMMARY).replace(path / f"summary-step-{snapshot.step}.json")
    schedule = schedules.make(longer.schedule)
    before = schedule(snapshot.step, 1.0)
    now = schedule(snapshot.step, extended.progress(snapshot.step))
    return (
        f"extended from {config.steps} to {steps} steps: the learning rate is that of a run of "
        f"{steps} steps, so it changes from {before:.2g} to {now:.2g} of the base rate at step "
        f"{snapshot.step}, and ends at {schedule(extended.end, 1.0):.2g} at step {extended.end}"
    )


def check_extension(path: Path, steps: int) -> RunConfig:
    """Check that a run can be given a larger budget, and return its configuration.

    Args:
        path: Folder of the run.
        steps: New budget in optimizer steps.

    Raises:
        UserError: The run has not ended or has diverged, or the budget is not larger.
    """
    if not (path / _SUMMARY).is_file():
        raise UserError(
            f"expected a finished run in {path}, found none; leave --steps out to resume a run, "
            "or give the folder of a finished one"
        )
    if _ended(path) == "diverged":
        raise UserError(
            f"expected a run that has trained to its end in {path}, found one that has diverged; "
            f"start from a state before that with: trainenv fork {path}@STEP --set optimizer.lr=…"
        )
    config = RunConfig.load(path / _CONFIG)
    snapshot = CheckpointStore(path / FOLDER).load()
    if "horizon" not in snapshot.state:
        raise UserError(
            f"expected a run of trainenv in {path}, found one of another trainer; extend it there"
        )
    # A run with steps left was extended by a process that was killed since.
    if snapshot.state["horizon"]["end"] <= snapshot.step and steps <= config.steps:
        raise UserError(
            f"expected more than the {config.steps} steps of the run in {path}, found {steps}; "
            "give a larger number"
        )
    return config


@dataclass(frozen=True, kw_only=True)
class Forked:
    """A fork of a recorded state, ready to train.

    Attributes:
        run: Run in the state of its parent.
        folder: New folder that records it.
        note: Sentence about the parts of the state that could not be carried over.
    """

    run: TrainingRun
    folder: RunFolder
    note: str


def fork(
    parent: Path, step: int | None, overrides: Mapping[str, Any], out: Path | None = None
) -> Forked:
    """Build a run that continues from a checkpoint of another, with some settings changed.

    Args:
        parent: Folder of the other run.
        step: Step of the checkpoint; None for the newest.
        overrides: Changed values of the configuration, by dotted key.
        out: New folder; None for the first free one in `runs`.

    Raises:
        UserError: There is no such checkpoint, its state does not fit the changed model, or no
            step of the budget is left.
    """
    if not (parent / _CONFIG).is_file():
        raise UserError(
            f"expected the folder of a run at {parent}, found no {_CONFIG} in it; give one that "
            "`trainenv runs` lists"
        )
    before = RunConfig.load(parent / _CONFIG)
    config = RunConfig.load(before, overrides)
    snapshot = CheckpointStore(parent / FOLDER).load(step)
    if "horizon" not in snapshot.state:
        raise UserError(
            f"expected a run of trainenv in {parent}, found one of another trainer; continue it "
            "there"
        )
    budget = _budget_then(snapshot, before)
    end = snapshot.state["horizon"]["end"]
    if end + config.steps - budget <= snapshot.step:
        raise UserError(
            f"the run in {parent} has spent its budget of {config.steps} steps by step "
            f"{snapshot.step}; add --set steps=N with more than {budget + snapshot.step - end}, or "
            "take an earlier step"
        )
    run = TrainingRun.from_config(config)
    changed = tuple(_changed(before, config))
    adapted, lost = _adapted(snapshot, run, budget, changed)
    run.restore(adapted)
    if run.lr_scale != 1 and "optimizer.lr" not in changed:
        lost.append(
            f"the steered factor {run.lr_scale:.3g} on the learning rate stays in force; set "
            "optimizer.lr to start from that rate instead"
        )
    folder = RunFolder.create(out, config)
    write_json(
        folder.path / PARENT,
        {
            "folder": str(absolute(parent)),
            "step": snapshot.step,
            "fingerprint": snapshots.fingerprint(snapshot, ("ledger", "numerics", "statistics")),
            "tier": snapshot.tier,
            "changes": {key: _value(config, key) for key in changed},
        },
    )
    return Forked(run=run, folder=folder, note="; ".join(lost))


def read_parent(path: Path) -> Mapping[str, Any] | None:
    """Return the content of `parent.json` in a run's folder; None if it is no fork."""
    try:
        found = json.loads((path / PARENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(found, Mapping) and {"folder", "step"} <= set(found):
        return found
    return None


def _adapted(
    snapshot: Snapshot, run: TrainingRun, budget: int, changed: tuple[str, ...]
) -> tuple[Snapshot, list[str]]:
    """Return a snapshot that fits a run with a changed configuration, and what is not the parent's.

    Args:
        snapshot: State of the parent.
        run: Run with the changed configuration, at its first step.
        budget: Steps that the parent was configured for when it was saved.
        changed: Keys whose values differ.
    """
    fresh = snapshots.expand(run.snapshot())
    state = snapshots.expand(snapshot)
    lost = []
    for part, (sections, words) in _REPLACED.items():
        if not _touched(changed, sections):
            continue
        state.pop(part, None)
        if part in fresh:
            state[part] = fresh[part]
        if words:
            lost.append(words)
    state.pop(CALLBACK_STATE, None)  # the fork has a callback of its own
    state.pop(REWINDS, None)
    state["seed"] = run.config.seed
    if "optimizer.lr" in changed:
        state["lr_scale"] = 1.0
    if "optimizer.weight_decay" in changed:
        state["weight_decay_scale"] = 1.0
    if run.config.steps != budget or _touched(changed, _PLAN):
        end = state["horizon"]["end"] + run.config.steps - budget
        state["horizon"] = _planned(run.config, end).state_dict()
    notes = []
    if lost:
        notes.append(f"not carried over, because the configuration differs: {', '.join(lost)}")
    if snapshot.tier != "exact":
        notes.append("the optimizer's moments were rounded to 8 bits when they were saved")
    return snapshots.capture(snapshot.step, state), notes


def _budget_then(snapshot: Snapshot, config: RunConfig) -> int:
    """Return the steps that a run was configured for when it was saved; it may be extended since.

    Args:
        snapshot: State of the run then.
        config: Configuration of the run now.
    """
    remembered = snapshot.state.get(CALLBACK_STATE)
    if remembered is not None:
        return int(json.loads(remembered).get("steps", config.steps))
    if REWINDS in snapshot.state:
        return config.steps
    return int(snapshot.state["horizon"]["end"])


def _planned(config: TrainingConfig, end: int) -> schedules.Horizon:
    """Return the budget of a run that was to end at a step from its start on."""
    return schedules.Horizon(end=end, since=min(config.schedule.warmup, end))


def _changed(before: RunConfig, after: RunConfig) -> Iterable[str]:
    """Yield the dotted keys whose values differ."""
    yield from _differing(before.model_dump(), after.model_dump(), "")


def _differing(one: Mapping[str, Any], two: Mapping[str, Any], above: str) -> Iterable[str]:
    for key, value in two.items():
        if isinstance(value, Mapping) and isinstance(one.get(key), Mapping):
            yield from _differing(one[key], value, f"{above}{key}.")
        elif one.get(key) != value:
            yield f"{above}{key}"


def _touched(changed: Iterable[str], sections: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in changed for name in sections)


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _ended(path: Path) -> str:
    try:
        return str(json.loads((path / _SUMMARY).read_text(encoding="utf-8")).get("ended", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
