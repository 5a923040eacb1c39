"""Compiled and wrapped models: plain names in snapshots and files, which fit whatever is wrapped and whatever is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.own_runs import assert_value, net, run_of
from trainenv.checkpoints.interop import export, load_weights
from trainenv.run import TrainingRun

# Dynamo itself looks at the gradient of what a compiled part is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


def compiled(model: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return wrapped


def compiled_in_part(model: nn.Module) -> nn.Module:
    model[1] = compiled(model[1])  # type: ignore[index, operator]
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "compiled": compiled,
    "compiled in part": compiled_in_part,
    "compiled in place": compiled_in_place,
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda model: nn.DataParallel(compiled(model)),
}


def made(name: str) -> TrainingRun:
    return run_of(WRAPS[name](net()))


@pytest.mark.parametrize("name", WRAPS)
def test_a_run_of_it_is_a_value(name: str) -> None:
    run = assert_value(lambda: made(name))
    assert type(run.fork().model) is type(run.model)
    assert sorted(run.snapshot().state["model"]) == ["0.weight", "1.bias", "1.weight"]


@pytest.mark.parametrize("name", WRAPS)
def test_snapshots_and_files_fit_both_ways(name: str, tmp_path: Path) -> None:
    plain, other = made("plain"), made(name)
    plain.advance(3)
    other.restore(plain.snapshot())
    assert other.fingerprint() == plain.fingerprint()
    other.advance(2)
    plain.restore(other.snapshot())
    assert plain.fingerprint() == other.fingerprint()
    path = export(other.snapshot(), tmp_path / "w.safetensors")
    other.advance(1)
    for run in (plain, other):
        load_weights(run, path)
    assert (
        plain.snapshot().tensors["model/0.weight"].equal(other.snapshot().tensors["model/0.weight"])
    )
    net().load_state_dict(
        torch.load(export(other.snapshot(), tmp_path / "w.pt"), weights_only=True)["model"]
    )


def test_long_names_from_before_are_understood(tmp_path: Path) -> None:
    run, plain = made("compiled"), made("plain")
    run.advance(2)
    snapshot = run.snapshot()
    weights = {f"_orig_mod.{name}": part for name, part in snapshot.state["model"].items()}
    old = replace(snapshot, state=dict(snapshot.state) | {"model": weights})
    for restored in (run, plain):
        restored.restore(old)
        assert restored.fingerprint() == run.fingerprint()
    torch.save(run.model.state_dict(), tmp_path / "w.pt")
    load_weights(plain, tmp_path / "w.pt")
    parallel = made("parallel")
    torch.save(parallel.model.state_dict(), tmp_path / "p.pt")
    load_weights(parallel, tmp_path / "p.pt")
