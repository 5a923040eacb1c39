"""The few numbers that a checkpoint tells of a run: the newest of each, strict JSON, and no part of the future."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from trainenv.monitor.last_values import Statistics
from trainenv.run import TrainingRun
from trainenv.types import Telemetry

SMALL: dict[str, Any] = {
    "steps": 60,
    "batch_size": 4,
    "block_steps": 4,
    "model": {"width": 32, "layers": 2, "heads": 2, "context": 32},
    "validation": {"every": 0, "sequences": 4},
    "monitor": {"block": 5, "probe_every": 3},
}
NAMES = [
    "epoch",
    "loss",
    "grad_norm",
    "probe_loss",
    "attention_entropy",
    "activation_entropy",
    "activation_mean",
    "activation_std",
]
PROBED = ["probe_loss", "attention_entropy", "activation_entropy"]


def made(**settings: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", {**SMALL, **settings})


def told(run: TrainingRun) -> dict[str, Any]:
    statistics: dict[str, Any] = run.snapshot().state["statistics"]
    assert [name for name in statistics if name != "non_finite"] == NAMES
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics
    return statistics


def test_nothing_is_known_at_the_start() -> None:
    assert told(made()) == {name: 0 if name == "epoch" else None for name in NAMES}


def test_the_newest_of_each() -> None:
    run = made()
    window = run.advance(9)
    found = told(run)
    assert found["loss"] == window[-1].loss
    assert found["grad_norm"] == window[-1].grad_norm
    assert math.isnan(window[-1].probe_loss)
    looked = [t for t in window if not math.isnan(t.probe_loss)][-1]
    assert looked.step == 7
    assert [found[name] for name in PROBED] == [getattr(looked, name) for name in PROBED]
    assert len(found["activation_mean"]) == len(found["activation_std"]) == 2


def test_activations_are_those_of_the_blocks() -> None:
    run = made(**{"monitor.probe_every": 1})
    run.advance(3)
    seen: list[tuple[float, float]] = []

    def look(module: Any, inputs: Any, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output)[
            :, 1::2
        ]  # of 32 positions, 16 are looked at
        seen.append((hidden.mean().item(), hidden.std(correction=0).item()))

    hooks = [block.register_forward_hook(look) for block in run.model.transformer.h]  # type: ignore[union-attr]
    with torch.no_grad():
        run.model.eval()(run._probe_batch[:, :-1])
    for hook in hooks:
        hook.remove()
    found = told(run)
    assert found["activation_mean"] == pytest.approx([mean for mean, _ in seen], abs=1e-6)
    assert found["activation_std"] == pytest.approx([std for _, std in seen], rel=1e-5)


@pytest.mark.parametrize("settings", [{"monitor.enabled": False}, {"monitor.probe_every": 0}])
def test_without_a_probe_the_loss_is_still_told(settings: dict[str, Any]) -> None:
    run = made(**settings)
    (*_, last) = run.advance(4)
    found = told(run)
    assert (found["loss"], found["grad_norm"]) == (last.loss, last.grad_norm)
    assert [found[name] for name in [*PROBED, "activation_mean", "activation_std"]] == [None] * 5


def test_the_epoch(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{place} squared is {place**2}.\n" for place in range(170)))
    shape = {"model.context": 16, "batch_size": 16}
    shape |= {"monitor.probe_sequences": 1, "validation.sequences": 2}
    run = made(corpus={"name": "text", "path": str(text)}, **shape)
    epoch: int = run._batches.epoch_steps  # type: ignore[attr-defined]
    run.advance(epoch - 1)
    assert run.epoch == told(run)["epoch"] == 0
    run.advance(1)
    assert run.epoch == told(run)["epoch"] == 1
    run.advance(epoch)
    assert run.fork().epoch == 2


def test_they_survive_restore_fork_and_json() -> None:
    run, without = made(), made(**{"monitor.enabled": False})
    run.advance(8)
    snapshot, expected = run.snapshot(), told(run)
    assert told(run.fork()) == expected
    run.advance(6)
    assert told(run) != expected
    for other in (run, made(), without):
        other.restore(snapshot)
        assert told(other) == expected


def test_they_are_no_part_of_the_future() -> None:
    run = made()
    run.advance(4)
    before, snapshot = run.fingerprint(), run.snapshot()
    statistics = dict.fromkeys(snapshot.state["statistics"])
    run.restore(
        type(snapshot)(
            snapshot.step, snapshot.tensors, {**snapshot.state, "statistics": statistics}
        )
    )
    assert run.fingerprint() == before


def test_what_is_not_finite_is_none() -> None:
    run = made(**{"clip.policy": "none", "monitor.probe_every": 1})
    run.advance(2)
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    run.advance(1)
    found = told(run)
    assert found["loss"] is found["grad_norm"] is None
    assert found["non_finite"] == 1
    assert found["activation_mean"] == found["activation_std"] == [None, None]
    run.restore(run.snapshot())
    assert told(run) == found


def test_a_step_that_looked_at_nothing_keeps_the_older_look() -> None:
    common: dict[str, Any] = dict.fromkeys(
        (f for f in Telemetry.__dataclass_fields__ if f not in ("reading", "stressors")), 0.0
    )
    statistics = Statistics()
    statistics.update(
        Telemetry(**common | {"loss": 2.0, "probe_loss": 3.0, "attention_entropy": math.inf})
    )
    statistics.update(Telemetry(**common | {"loss": math.nan} | dict.fromkeys(PROBED, math.nan)))
    found = statistics.state_dict()
    assert (
        found["loss"],
        found["probe_loss"],
        found["attention_entropy"],
        found["activation_entropy"],
    ) == (None, 3.0, None, 0.0)
