"""Files for plain torch and transformers, and theirs for a run: the same numbers, or a refusal that changes nothing."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from tests.support.bigram import tokens
from trainenv import TrainingConfig, TrainingRun
from trainenv.checkpoints.file import read, write
from trainenv.checkpoints.interop import export, load_weights
from trainenv.envs.synthetic import SyntheticEnv
from trainenv.types import UserError

SMALL: dict[str, Any] = {
    "device": "cpu",
    "steps": 40,
    "batch_size": 2,
    "model.context": 16,
    "model.width": 16,
    "validation.sequences": 4,
    "monitor.probe_every": 0,
}


def gpt2(steps: int = 0, **more: Any) -> TrainingRun:
    run = TrainingRun.from_config("tiny", {**SMALL, **more})
    run.advance(steps)
    return run


class Tied(nn.Module):
    """A model of a user's own, with tied weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(4, 8, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(self.norm(self.embed(tokens)))
        return logits


def own(
    steps: int = 0,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-2,
    **settings: Any,
) -> TrainingRun:
    torch.manual_seed(steps)
    model = Tied()
    config = TrainingConfig(
        steps=40,
        clip={"policy": "none"},
        monitor={"probe_every": 0},
        schedule={"kind": "constant", "warmup": 0},
    )
    run = TrainingRun(
        model, make(model.parameters(), lr=lr, **settings), tokens, config, validation=[tokens(999)]
    )
    run.advance(steps)
    return run


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


# ── out ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("make", [gpt2, own])
def test_weights_load_into_the_plain_module(
    make: Callable[[int], TrainingRun], ending: str, tmp_path: Path
) -> None:
    run = make(3)
    path = export(run.snapshot(), tmp_path / "deep" / f"w.{ending}")
    assert path == tmp_path / "deep" / f"w.{ending}"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    plain = copy.deepcopy(make(0).model)
    assert not same_weights(plain, run.model)
    weights = (
        load_file(path) if ending == "safetensors" else torch.load(path, weights_only=True)["model"]
    )
    assert list(plain.load_state_dict(weights, strict=True)) == [[], []]
    assert same_weights(plain, run.model)


def test_transformers_load_what_was_exported(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    run = gpt2(3)
    export(run.snapshot(), tmp_path / "model.safetensors")
    run.model.config.save_pretrained(tmp_path)  # type: ignore[union-attr, operator]
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    ours, theirs = run.model.state_dict(), loaded.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Rprop, {}),
        (torch.optim.Adagrad, {}),
    ],
    ids=str,
)
def test_a_plain_optimizer_goes_on_to_the_same_bits(
    make: Any, settings: Any, tmp_path: Path
) -> None:
    run = own(5, make, **settings)
    path = export(run.snapshot(), tmp_path / "all.pt")
    loaded = torch.load(path, weights_only=True)
    assert set(loaded) == {"model", "optimizer", "step"}
    assert loaded["step"] == 5
    model = Tied()
    optimizer = make(model.parameters(), lr=1.0, **settings)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    assert optimizer.state_dict()["param_groups"] == run.optimizer.state_dict()["param_groups"]
    for step in range(5, 9):
        seen = tokens(step)
        nn.functional.cross_entropy(
            model(seen[:, :-1]).flatten(0, 1), seen[:, 1:].flatten()
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    run.advance(4)
    assert same_weights(model, run.model)


def test_moments_that_were_rounded_are_exported_as_they_are(tmp_path: Path) -> None:
    run = gpt2(3, **{"model.width": 64})
    write(run.snapshot(), tmp_path / "a.ptz", tier="8bit")
    snapshot = read(tmp_path / "a.ptz")
    loaded = torch.load(export(snapshot, tmp_path / "a.pt"), weights_only=True)
    assert torch.equal(
        loaded["optimizer"]["state"][0]["exp_avg"], snapshot.tensors["optimizer/state/0/exp_avg"]
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w.onnx", r"ends in \.safetensors .* or \.pt .*, found .*w\.onnx"),
        ("taken.pt", "taken.pt already exists; give another"),
    ],
)
def test_paths_that_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "taken.pt").write_bytes(b"precious")
    with pytest.raises(UserError, match=message):
        export(own().snapshot(), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["taken.pt"]
    assert (tmp_path / "taken.pt").read_bytes() == b"precious"


def test_a_folder_that_is_none_and_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"w\.pt could not be written: "):
        export(own().snapshot(), tmp_path / "file" / "w.pt")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for ending in ("pt", "safetensors"):
        with pytest.raises(UserError, match=rf"w\.{ending} could not be written: .*No space left"):
            export(own().snapshot(), tmp_path / f"w.{ending}")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_synthetic_environment_has_no_weights(tmp_path: Path) -> None:
    env = SyntheticEnv()
    env.reset(seed=0)
    with pytest.raises(UserError, match="found one without a model"):
        export(env.snapshot(), tmp_path / "w.pt")


def test_state_that_is_no_tensor_needs_a_pt_file(tmp_path: Path) -> None:
    class Noting(Tied):
        def get_extra_state(self) -> dict[str, Any]:
            return {"seen": [1, 2]}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state

    model = Noting()
    run = TrainingRun(
        model, torch.optim.SGD(model.parameters(), 0.1), tokens, TrainingConfig(steps=4)
    )
    with pytest.raises(
        UserError, match=r"_extra_state in the model's state is no tensor, .* ends in \.pt"
    ):
        export(run.snapshot(), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
    export(run.snapshot(), tmp_path / "w.pt")
    model.seen = None
    load_weights(run, tmp_path / "w.pt")
    assert model.seen == {"seen": [1, 2]}


# ── in ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_alone_start_a_run_of_its_own(tmp_path: Path) -> None:
    trained = gpt2(5)
    run = gpt2()
    load_weights(run, export(trained.snapshot(), tmp_path / "w.safetensors"))
    assert same_weights(run.model, trained.model)
    assert (run.step, run.optimizer.state_dict()["state"]) == (0, {})
    assert run.evaluate() == trained.evaluate()
    run.advance(2)
    again = gpt2()
    again.model.load_state_dict(trained.model.state_dict())
    again.advance(2)
    assert run.fingerprint() == again.fingerprint()


def test_weights_alone_leave_no_moments_of_others(tmp_path: Path) -> None:
    run = own(4)
    load_weights(run, export(own(7).snapshot(), tmp_path / "w.safetensors"))
    assert not any(
        entry["exp_avg"].any() or entry["step"] for entry in run.optimizer.state.values()
    )


def test_the_optimizer_s_state_is_taken_over_its_settings_are_not(tmp_path: Path) -> None:
    trained, run = own(5, weight_decay=0.3), own(lr=5e-3, weight_decay=0.1)
    load_weights(run, export(trained.snapshot(), tmp_path / "all.pt"))
    for ours, theirs in zip(
        run.optimizer.state.values(), trained.optimizer.state.values(), strict=True
    ):
        assert all(
            torch.equal(ours[name], theirs[name]) for name in ("step", "exp_avg", "exp_avg_sq")
        )
    (telemetry,) = run.advance(1)
    assert (telemetry.lr, telemetry.weight_decay, run.step) == (5e-3, 0.1, 1)
    assert trained.optimizer.state_dict()["state"][0]["step"] == 5  # nothing is shared


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model, optimizer: model,
        lambda model, optimizer: {"model": model},
        lambda model, optimizer: {"model": model, "optimizer": optimizer},
        lambda model, optimizer: {
            "model_state_dict": model,
            "optimizer_state_dict": optimizer,
            "epoch": 3,
        },
        lambda model, optimizer: {"state_dict": model, "optimizer": None},
    ],
)
@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_files_of_others(wrap: Callable[[Any, Any], Any], ending: str, tmp_path: Path) -> None:
    trained, run = own(5), own()
    content = wrap(trained.model.state_dict(), trained.optimizer.state_dict())
    torch.save(content, tmp_path / f"w.{ending}")
    load_weights(run, tmp_path / f"w.{ending}")
    assert same_weights(run.model, trained.model)
    takes_over = isinstance(content, dict) and bool(
        content.get("optimizer") or content.get("optimizer_state_dict")
    )
    assert bool(run.optimizer.state) == takes_over


def test_tied_weights_may_stand_under_one_name(tmp_path: Path) -> None:
    trained, run = own(5), own()
    save_model(trained.model, str(tmp_path / "w.safetensors"))
    assert len(load_file(tmp_path / "w.safetensors")) == len(trained.model.state_dict()) - 1
    load_weights(run, tmp_path / "w.safetensors")
    assert same_weights(run.model, trained.model)
    assert run.model.out.weight is run.model.embed.weight  # type: ignore[union-attr]


def test_numbers_are_cast_to_the_types_of_the_model(tmp_path: Path) -> None:
    trained, run = own(5), own()
    half = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in trained.model.state_dict().items()
    }
    torch.save(half, tmp_path / "w.pt")
    load_weights(run, tmp_path / "w.pt")
    assert run.model.embed.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.equal(run.model.embed.weight, trained.model.embed.weight.bfloat16().float())  # type: ignore[union-attr, operator]


# ── what does not fit ───────────────────────────────────────────────────────────────────────────────────────────────


def refused(run: TrainingRun, path: Path, message: str) -> None:
    before = run.fingerprint()
    with pytest.raises(UserError, match=message) as error:
        load_weights(run, path)
    assert "\n" not in str(error.value)
    assert run.fingerprint() == before


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("norm.bias"),
            r"norm\.bias should be float32 \[8\], found absent; give a file",
        ),
        (
            lambda w: (w.pop("norm.bias"), w.pop("norm.weight")),
            r"norm\.weight should be .*, found absent \(and 1 more\)",
        ),
        (
            lambda w: (w.pop("out.weight"), w.pop("embed.weight")),
            r"embed\.weight should be .*, found absent \(and 1 more\)",
        ),
        (lambda w: w.update(head=torch.zeros(2)), r"head should be absent, found float32 \[2\]"),
        (
            lambda w: w.update({"norm.bias": torch.zeros(9)}),
            r"norm\.bias should be float32 \[8\], found float32 \[9\]",
        ),
        (
            lambda w: w.update({"norm.bias": torch.zeros(8).int()}),
            r"norm\.bias should be float32 \[8\], found int32 \[8\]",
        ),
        (
            lambda w: w.update({"norm.bias": torch.zeros(8).to_sparse()}),
            r"norm\.bias should be .*, found float32 \[8\] sparse",
        ),
        (
            lambda w: w.update({"norm.bias": torch.zeros(8, device="meta")}),
            r"norm\.bias should be .* \[8\] without numbers",
        ),
        (lambda w: w.update({"norm.bias": 3}), r"norm\.bias should be float32 \[8\], found int"),
        (
            lambda w: [w.update({f"module.{name}": w.pop(name)}) for name in list(w)],
            r"embed\.weight should be .* \(and 13 more\)",
        ),
    ],
)
def test_names_and_shapes_that_differ_are_named(
    change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    run, weights = own(3), dict(own(5).model.state_dict())
    change(weights)
    for content in (weights, {"model": weights}):
        refused(run, saved(content, tmp_path / "w.pt"), r"w\.pt does not fit the model: " + message)
    if all(
        isinstance(t, Tensor) and t.layout == torch.strided and not t.is_meta
        for t in weights.values()
    ):
        save_file(
            {name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "w.safetensors"
        )
        refused(run, tmp_path / "w.safetensors", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.clear(), "with state and param_groups"),
        (lambda o: o.update(state=[]), "with state and param_groups"),
        (lambda o: o.update(param_groups=[3]), "with state and param_groups"),
        (
            lambda o: o["param_groups"].append(o["param_groups"][0]),
            r"expected parameter groups of \[3\], found \[3, 3\]",
        ),
        (
            lambda o: o["param_groups"][0]["params"].pop(),
            r"expected parameter groups of \[3\], found \[2\]",
        ),
        (
            lambda o: o["param_groups"][0].update(params=None),
            r"expected parameter groups of \[3\], found \[None\]",
        ),
        (
            lambda o: o["state"].update({9: {}}),
            "it has state for a parameter 9 that is in no group",
        ),
        (lambda o: o["state"].update({0: 3}), "it has state for a parameter 0"),
        (
            lambda o: o["state"][0].update(exp_avg=torch.zeros(3)),
            r"exp_avg of parameter 0 should be float32 \[8, 4\], found float32",
        ),
        (
            lambda o: o["state"][0].update(exp_avg_sq=3),
            r"exp_avg_sq of parameter 0 should be float32 \[8, 4\], found int",
        ),
    ],
)
def test_an_optimizer_s_state_that_does_not_fit(
    change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    trained, run = own(5), own(3)
    optimizer = copy.deepcopy(trained.optimizer.state_dict())
    change(optimizer)
    path = saved({"model": trained.model.state_dict(), "optimizer": optimizer}, tmp_path / "w.pt")
    refused(run, path, r"w\.pt does not fit the optimizer: .*" + message + ".*only the weights")


def test_the_state_of_another_kind_of_optimizer(tmp_path: Path) -> None:
    path = export(own(5, torch.optim.SGD, momentum=0.9).snapshot(), tmp_path / "w.pt")
    refused(
        own(3), path, "it is of another kind, with dampening, .*momentum.*, expected amsgrad, betas"
    )
    path = saved({"model": own(5).model.state_dict(), "optimizer": [1]}, tmp_path / "list.pt")
    refused(own(3), path, "expected the optimizer's state dict in .*, found list")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_code_is_not_run(ending: str, tmp_path: Path) -> None:
    path, evil = tmp_path / f"w.{ending}", Evil(tmp_path / "made")
    torch.save({"model": {"w": torch.zeros(2)}, "more": evil}, path)
    refused(
        own(3),
        path,
        "was not read: it is damaged, or holds more than tensors, which could run code; if you trust it",
    )
    path.write_bytes(pickle.dumps(evil))
    refused(own(3), path, "was not read")
    torch.save(Tied(), path)
    refused(own(3), path, "was not read")
    assert not evil.folder.exists()
    pickle.loads(pickle.dumps(evil))
    assert evil.folder.exists()  # it would have


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_files_that_are_torn(ending: str, tmp_path: Path) -> None:
    path, run = export(own(5).snapshot(), tmp_path / f"w.{ending}"), own(3)
    whole = path.read_bytes()
    for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(run, path, r"w\.(pt was not read|safetensors is not a whole)")
    path.write_bytes(b"junk" * 1000)
    refused(run, path, r"w\.(pt was not read|safetensors is not a whole)")


@pytest.mark.parametrize(
    "content",
    [3, None, [torch.zeros(2)], torch.zeros(2), {}, {"model": 3}, {1: torch.zeros(2)}],
    ids=repr,
)
def test_files_of_something_else(content: Any, tmp_path: Path) -> None:
    refused(
        own(3), saved(content, tmp_path / "w.pt"), "expected a state dict in|does not fit the model"
    )


def test_no_such_file_and_no_such_kind(tmp_path: Path) -> None:
    run = own(3)
    refused(run, tmp_path / "gone.pt", r"expected weights at .*gone\.pt, found no file")
    refused(run, tmp_path, "found no file")
    write(run.snapshot(), tmp_path / "cp_3.ptz")
    refused(
        run,
        tmp_path / "cp_3.ptz",
        r"in a \.safetensors or \.pt file, found .*cp_3\.ptz; export a trainenv checkpoint first",
    )
