"""State of a run as JSON values: figures, curves, and what has happened in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainenv.records.decision_files import accepted_branch
from trainenv.report.drawing import formatting
from trainenv.tools.paths import typed
from trainenv.training.ledger import wasted_share
from trainenv.types import PURPOSES
from trainenv.watch import steps
from trainenv.watch.life import Life, left, life_of
from trainenv.watch.run_reader import RunReader
from trainenv.watch.story import story_of

POINTS = 400  # points of a curve across the page
_VALIDATIONS = 300  # most validation losses that are drawn


def state_of(reader: RunReader) -> dict[str, Any]:
    """Return figures, curves and story of a run."""
    return {
        "facts": facts_of(reader),
        "curves": curves_of(reader),
        "story": story_of(reader),
    }


def facts_of(reader: RunReader) -> dict[str, Any]:
    """Return the figures of a run: its name, state, verdict, key figures and compute."""
    life = life_of(reader)
    folder = reader.folder.resolve().name
    name = str(reader.config.get("name") or folder)
    if name != folder:
        name = f"{name} · {folder}"
    step, budget = progress(reader)
    return {
        "name": name,
        "state": life.state,
        "verdict": _verdict(reader, life, step, budget),
        "step": step,
        "budget": budget,
        "seconds_left": life.seconds_left,
        "tiles": _tiles(reader, life, step, budget),
        "ledger": ledger_of(reader),
        "notes": [f"{name} can't be read: {reason}" for name, reason in reader.notes.items()],
    }


def progress(reader: RunReader) -> tuple[int, int | None]:
    """Return the step of a run, and the step at which its budget is spent if that is known."""
    budget = reader.config.get("steps")
    if not isinstance(budget, int):
        budget = None
    if reader.summary is not None and isinstance(reader.summary.get("step"), int):
        return reader.summary["step"], budget
    if reader.heartbeat is not None and reader.beating:
        return reader.heartbeat.step, reader.heartbeat.end
    last = [int(reader.steps.lines[n].step[count - 1]) for n, count in _kept(reader)[-1:]]
    return max([0, *last]), budget


def flops_of(reader: RunReader) -> dict[str, float]:
    """Return the FLOPs so far, by purpose; empty if unknown."""
    found: Any = (reader.summary or {}).get("flops")
    if not isinstance(found, Mapping):
        found = {}
        if reader.heartbeat is not None:
            found = reader.heartbeat.flops
    known = {str(name): formatting.finite(amount) for name, amount in found.items()}
    return {name: amount for name, amount in known.items() if amount is not None}


def ledger_of(reader: RunReader) -> list[dict[str, Any]]:
    """Return the compute by purpose, in words and as a share."""
    flops = flops_of(reader)
    total = sum(flops.values())
    if not total:
        return []
    names = [*PURPOSES, *(name for name in flops if name not in PURPOSES)]
    return [
        {
            "purpose": name if name in PURPOSES else "other",
            "name": formatting.PURPOSES.get(name, name),
            "part": flops.get(name, 0.0) / total,
            "share": formatting.share(flops.get(name, 0.0) / total),
            "flops": formatting.flops(flops.get(name, 0.0)),
        }
        for name in names
    ]


def validations(reader: RunReader) -> list[tuple[int, float, bool]]:
    """Return step, loss and kept of the validation losses that can be drawn."""
    last = reader.steps.last_kept(reader.begun)
    return [
        (v["step"], loss, v["step"] <= last.get(v.get("line", 0), math.inf))
        for v in reader.validation
        if isinstance(v.get("step"), int) and (loss := formatting.finite(v.get("loss"))) is not None
    ]


def curves_of(
    reader: RunReader, first: float = -math.inf, last: float = math.inf
) -> dict[str, Any]:
    """Return the curves of a run from step `first` to `last`, thinned."""
    kept = _kept(reader)
    shown = steps.picture(reader.steps, kept, POINTS, first, last)
    measured = [v for v in validations(reader) if first <= v[0] <= last]
    stride = max(len(measured) // _VALIDATIONS, 1)
    return {
        **shown,
        "ghosts": steps.ghosts(reader.steps, kept),
        "validation": [*measured[:-1:stride], *measured[-1:]],
    }


def _kept(reader: RunReader) -> list[tuple[int, int]]:
    return reader.steps.kept(reader.begun)


def _loss(reader: RunReader) -> float | None:
    """Return the smoothed training loss of the last kept step; None if unknown."""
    for number, count in _kept(reader)[-1:]:
        return formatting.finite(float(reader.steps.lines[number].values[count - 1, -1]))
    return None


def _verdict(reader: RunReader, life: Life, step: int, budget: int | None) -> str:
    """Write the state of the run in a sentence or two."""
    where = f"step {formatting.whole(step)}"
    if budget:
        where += f" of {formatting.whole(budget)}"
    text = f"{life.words[:1].upper()}{life.words[1:]}: {where}"
    if life.state == "running" and life.seconds_left is not None:
        text += f", about {left(life)} left"
    text += "."
    if life.state in ("killed", "interrupted"):
        text += f" To resume it: trainenv run --resume --out {typed(reader.folder)}"
    return text


def _tiles(
    reader: RunReader, life: Life, step: int, budget: int | None
) -> list[tuple[str, str, str]]:
    """Return name, value and note of the key figures."""
    measured = [v for v in validations(reader) if v[2]]
    of = "optimizer steps"
    if budget:
        of = f"of {formatting.whole(budget)}"
    tiles = [("Step", formatting.whole(step), of)]
    tiles.append(("Training loss", formatting.number(_loss(reader)), "smoothed, nats per token"))
    if measured:
        note = f"at step {formatting.whole(measured[-1][0])}, nats per token"
        tiles.append(("Validation loss", formatting.number(measured[-1][1]), note))
    if life.state == "running":
        pace = "the pace is not known yet"
        if life.ms_per_step is not None:
            pace = f"{formatting.duration(life.ms_per_step / 1000)} a step"
        tiles.append(("Time left", left(life), pace))
    kinds = [event["kind"] for event in reader.events]
    rollbacks = formatting.counted(kinds.count("rewind"), "rollback")
    tiles.append(("Alarms", str(kinds.count("fired")), rollbacks))
    if reader.decisions:
        accepted = sum(accepted_branch(one) is not None for one in reader.decisions.values())
        tiles.append(("Accepted", f"{accepted} of {len(reader.decisions)}", "verified decisions"))
    flops = flops_of(reader)
    if total := sum(flops.values()):
        wasted = formatting.share(wasted_share(flops))
        tiles.append(("Wasted", wasted, f"of {formatting.flops(total)}"))
    return tiles
