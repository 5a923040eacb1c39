"""Methods that cost milliseconds, one a way to end; importable by worker processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from trainenv.compare.allowed_flops import allowance
from trainenv.compare.contract import Stop, Watch
from trainenv.compare.suite import Suite, suite_of
from trainenv.config.schema import RunConfig
from trainenv.types import UserError

TINY = {"model": {"width": 8, "layers": 1, "heads": 1, "context": 16}, "batch_size": 4, "steps": 40}


def suite(seeds: int = 2, **more: Any) -> Suite:
    """Two calm scenarios and two with different faults."""
    scenario = {"size": "tiny", "corpus": "bytes"}
    values = {
        "seeds": seeds,
        "methods": ["nothing", "branching"],
        "sizes": {"tiny": TINY},
        "corpora": {"bytes": {"name": "stdlib"}},
        "scenarios": {
            "calm": {**scenario, "group": "calm"},
            "calm-2": {**scenario, "group": "calm"},
            "high": {**scenario, "group": "stressed", "fault": "LR × 10", "lr_factor": 10},
            "bursts": {
                **scenario,
                "group": "stressed",
                "fault": "rare tokens",
                "stressors": {"rare_tokens": 0.5},
            },
        },
    }
    return suite_of({**values, **more}, "fake")


def _leave(config: RunConfig, folder: Path, loss: float, **more: Any) -> dict[str, Any]:
    """What a run would leave in its folder, as `measure` reads it."""
    folder.mkdir()
    budget = allowance(config)
    left = {
        "loss": loss,
        "flops": budget,
        "budget": budget,
        "seed": config.seed,
        "ended": "budget spent",
        "pid": os.getpid(),
    }
    (folder / "left.json").write_text(json.dumps({**left, **more}), encoding="utf-8")
    return {"ended": "budget spent"}


def nothing(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """A loss that is the run's own: a function of its seed."""
    return _leave(config, folder, 2 + (config.seed % 1000) / 1000)


def branching(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """A tenth better than `nothing`, on every run."""
    return _leave(config, folder, 0.9 * (2 + (config.seed % 1000) / 1000))


def spendthrift(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Spends 5 % more than it may."""
    return _leave(config, folder, 1.0, flops=1.05 * allowance(config))


def punctual(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Spends 0.9 % more than its budget, which is within what is allowed."""
    return _leave(config, folder, 1.0, flops=1.009 * allowance(config))


def diverges(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Ends early, at the loss of a uniform guess."""
    return _leave(config, folder, 5.5, ended="diverged", flops=0.2 * allowance(config))


def raises(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Has a fault, after it has begun to record."""
    _leave(config, folder, 1.0)
    raise ZeroDivisionError("by hand")


def refuses(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Lacks something that its user could mend."""
    raise UserError("expected the package abc, found none; pip install abc")


def lossless(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Ends without a loss."""
    return _leave(config, folder, float("nan"))


def stops_if_asked(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Is stopped in the middle."""
    _leave(config, folder, 1.0)
    return {"ended": "interrupted" if stop() else "budget spent"}


def dies_once(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Its process is killed, the first time that any of its cells is played."""
    mark = folder.parents[3] / "died-once"
    if not mark.exists():
        mark.touch()
        folder.mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    return _leave(config, folder, 1.5)


def dies(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Its process is killed, always."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def measure(folder: Path, /) -> dict[str, Any]:
    """What a cell needs, of what was left."""
    left = json.loads((folder / "left.json").read_text(encoding="utf-8"))
    import math

    return {
        "ended": left["ended"],
        "steps": 40,
        "final_loss": left["loss"],
        "log_final_loss": math.log(left["loss"]),
        "instability": {"events": 1, "steps": 40, "per_100k": 2500.0},
        "recovery": {"mean": 6.0, "median": 6.0, "events": 1, "unrecovered": 0},
        "flops": {"main": left["flops"], "verify": 0.0},
        "total_flops": left["flops"],
        "wasted": 0.0,
        "drafting": 0.0,
        "decisions": None,
    }


METHODS = {
    method.__name__.replace("_", "-"): method
    for method in (
        nothing,
        branching,
        spendthrift,
        punctual,
        diverges,
        raises,
        refuses,
        lossless,
        stops_if_asked,
        dies_once,
        dies,
    )
}
