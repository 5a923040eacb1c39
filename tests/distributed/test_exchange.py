"""Checkpoints of several processes for other worlds and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_state_dict

from tests.distributed.test_one_model import SMALL
from tests.distributed.test_recovery import whole
from tests.distributed.worlds import Ended, world
from trainenv import TrainingRun, UserError
from trainenv.checkpoints.interop import load_weights
from trainenv.cli import main
from trainenv.loop import resume


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that two processes have trained with FSDP2."""
    made = tmp_path_factory.mktemp("world") / "run"
    found = world(2, whole, "fsdp2", made)
    assert not any(isinstance(one, Ended) for one in found), found
    return made


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_dcp_loads_an_export_into_a_model_of_one_process(folder: Path, tmp_path: Path) -> None:
    """Weights and moments arrive whole, under the names of the parameters."""
    out = tmp_path / "dcp"
    assert main(["checkpoint", "export", str(folder), str(out), "--dcp"]) == 0
    assert main(["checkpoint", "export", str(folder), str(tmp_path / "w.safetensors")]) == 0
    run = TrainingRun.from_config("tiny", SMALL)
    run.advance(1)  # so that the optimizer has its moments
    model = run.model
    content: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": get_optimizer_state_dict(model, run.optimizer),
    }
    dcp.load(content, checkpoint_id=out, no_dist=True)
    set_state_dict(
        model,
        run.optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
    )
    weights = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    states = [run.optimizer.state[p] for p in model.parameters()]
    assert all(float(state["step"]) == 24 for state in states)
    assert all(state["exp_avg_sq"].abs().sum() > 0 for state in states)


def weights_of(kind: str, file: Path) -> tuple[float, float]:
    """Start from weights; return the validation loss before and after 4 steps."""
    run = TrainingRun.from_config("tiny", {**SMALL, "distributed": kind})
    load_weights(run, file)
    before = run.evaluate()
    run.advance(4)
    return before, run.evaluate()


def test_another_world_starts_from_exported_weights(folder: Path, tmp_path: Path) -> None:
    """Four processes with parts, two with whole models and one alone have the same loss."""
    file = tmp_path / "weights.safetensors"
    assert main(["checkpoint", "export", str(folder), str(file)]) == 0
    alone = weights_of("none", file)
    for size, kind in ((4, "fsdp2"), (2, "ddp")):
        for found in world(size, weights_of, kind, file):
            assert not isinstance(found, Ended), found
            assert found == pytest.approx(alone, abs=1e-5)


def resumes(kind: str, folder: Path) -> None:
    """Resume a run."""
    run = TrainingRun.from_config("tiny", {**SMALL, "distributed": kind})
    resume(folder, run, accept_changes=True)


def test_another_world_can_not_resume(folder: Path) -> None:
    """The sentence says how many processes saved the checkpoint, and what to do."""
    (folder / "summary.json").rename(folder / "ended.json")
    try:
        with pytest.raises(UserError, match=r"saved by 2 process\(es\), found 1; start 2"):
            resumes("none", folder)
    finally:
        (folder / "ended.json").rename(folder / "summary.json")


def test_a_damaged_part_is_found(folder: Path, tmp_path: Path) -> None:
    """`checkpoint verify` reads the parts of all processes."""
    part = folder / "checkpoints" / "rank-1" / "cp_24.ptz"
    assert main(["checkpoint", "verify", str(folder)]) == 0
    whole_part = part.read_bytes()
    part.write_bytes(whole_part[:-40])
    try:
        assert main(["checkpoint", "verify", str(folder)]) == 1
        assert main(["checkpoint", "export", str(folder), str(tmp_path / "w.pt")]) == 2
    finally:
        part.write_bytes(whole_part)
