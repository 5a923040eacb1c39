"""Several processes: each is watched without a trace; steering is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import trainenv
from tests.distributed.worlds import world
from tests.integrations.trainings import OwnLoop, Sequences, all_equal
from trainenv.integrations.attach import checkpoint_folders, processes
from trainenv.integrations.attach.settings import Choices
from trainenv.integrations.huggingface import Attachment
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import UserError


def loop() -> OwnLoop:
    """Return a loop whose model all processes train, each on its share of the data."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    made = OwnLoop(epochs=1)
    made.model = DistributedDataParallel(made.kept_model)
    data = Sequences(160)
    made.loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))
    return made


def watched(folder: Path) -> Any:
    """Train without us and watched; return what this process has recorded, or what differs."""
    plain = loop().plain()
    one = loop().steered(folder / "run", mode="watch")
    states = (plain.state(), one.state())
    if differ := [name for name in states[0] if not all_equal(states[0][name], states[1][name])]:
        return differ
    return read_telemetry(one.steer.report().folder)["loss"].tolist(), one.losses


def test_each_process_is_watched_and_keeps_its_bits(tmp_path: Path) -> None:
    found = world(2, watched, tmp_path)
    for one in found:
        assert isinstance(one, tuple), one
        recorded, losses = one
        assert recorded == losses
    assert found[0] != found[1]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "run-process-1"]


def steered(folder: Path) -> str:
    """Return the sentence that refuses to steer."""
    with pytest.raises(UserError) as refused:
        loop().steered(folder / "run")
    return str(refused.value)


def test_steering_several_processes_is_refused_in_all_of_them(tmp_path: Path) -> None:
    found = world(2, steered, tmp_path)
    assert found[0] == found[1]
    assert found[0].startswith("steering needs a single process, found 2; ")
    assert not list(tmp_path.iterdir())


def sharded(folder: Path) -> str:
    """Return the sentence that refuses sharded weights."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model = nn.Linear(4, 4)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError) as refused:
        trainenv.steer(model, optimizer, [torch.zeros(2, 4)], out=folder / "run", mode="watch")
    return str(refused.value)


def test_sharded_weights_are_refused_even_if_they_are_only_watched(tmp_path: Path) -> None:
    for sentence in world(2, sharded, tmp_path):
        assert "found sharded ones" in str(sentence)


def test_the_folder_of_a_process_has_the_whole_name_in_front() -> None:
    assert processes.of_process(Path("runs/lr-0.1"), 0) == Path("runs/lr-0.1")
    assert processes.of_process(Path("runs/lr-0.1"), 1) == Path("runs/lr-0.1-process-1")


def test_the_report_is_that_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    from trainenv.integrations.lightning import Steer

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    trainer: Any = SimpleNamespace(train=None)
    attached = Attachment(Choices(mode="watch"), trainer, tmp_path / "run")
    for one in (attached, Steer(tmp_path / "run", mode="watch")):
        assert one.report().folder == tmp_path / "run-process-1"


def test_a_checkpoint_is_complete_with_the_state_of_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for step, ranks in ((10, (0, 1)), (20, (0,))):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for rank in ranks:
            monkeypatch.setenv("RANK", str(rank))
            checkpoint_folders.write(folder, {"step": step, "ledger": {}, "of": rank})
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        path, state = checkpoint_folders.resolve(tmp_path, True)
        assert str(path).endswith("checkpoint-10")
        assert state is not None
        assert state["of"] == rank
