"""The doctor: findings that say what is there, and a remedy for what is not well."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainenv.cli import doctor, main
from trainenv.run import TrainingRun

CHECKS = ["python", "packages", "extras", "memory", "disk", "device", "exactness", "speed"]


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All but the checks that train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_exactness_and_speed", list)


def finding(what: str) -> doctor.Finding:
    return next(found for found in doctor.examine() if found["what"] == what)


def test_this_machine_is_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    assert set(result) == {"command", "healthy", "findings"}
    assert (result["command"], result["healthy"]) == ("doctor", True)
    assert [found["what"] for found in result["findings"]] == CHECKS
    for found in result["findings"]:
        assert set(found) == {"what", "ok", "found", "remedy"}
        assert found["ok"] is True
        assert found["found"]
    by_name = {found["what"]: found for found in result["findings"]}
    assert f"torch {version('torch')}" in by_name["packages"]["found"]
    assert re.match(r"[\d.]+ ms a step", by_name["speed"]["found"])
    assert by_name["exactness"]["remedy"] == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_training")
def test_for_people_a_line_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for what in CHECKS[:6]:
        assert f"ok   {what}: " in out
    assert "{" not in out


@pytest.mark.usefixtures("without_training")
def test_too_little_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "trainenv.cli.doctor.psutil.virtual_memory", lambda: SimpleNamespace(available=2**29)
    )
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAIL memory: 0.5 GiB free" in out
    assert "→ free some" in out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False


@pytest.mark.usefixtures("without_training")
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trainenv.cli.doctor.shutil.disk_usage", lambda path: SimpleNamespace(free=2**20)
    )
    found = finding("disk")
    assert found["ok"] is False
    assert "0.0 GiB" in found["found"]
    assert found["remedy"]


@pytest.mark.usefixtures("without_training")
def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_gymnasium(name: str) -> str:
        if name == "gymnasium":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without_gymnasium)
    found = finding("packages")
    assert found["ok"] is False
    assert "torch" in found["found"]
    assert found["remedy"] == "pip install gymnasium"


@pytest.mark.usefixtures("without_training")
def test_missing_extras_are_no_illness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_installed", lambda package: False)
    found = finding("extras")
    assert found["ok"] is True
    assert found["found"] == "none"
    assert (
        found["remedy"]
        == "pip install 'trainenv[bayes,benchmarks,code-eval,decode,gguf,hub,huggingface,lightning,mlflow,optimizers,ray,sb3,tensorboard,trackio,wandb,watch]'"
    )


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize("there", [True, False])
def test_the_device_is_named(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: f"GPU {place}")
    found = finding("device")
    assert found["found"] == "cuda: GPU 0, GPU 1" if there else found["found"].startswith("cpu: ")


def test_a_machine_that_does_not_repeat_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = iter(["a", "b"])
    monkeypatch.setattr(TrainingRun, "advance", lambda run, steps: [])
    monkeypatch.setattr(TrainingRun, "fingerprint", lambda run: next(prints))
    exactness, speed = doctor._exactness_and_speed()
    assert exactness["ok"] is False
    assert "differs" in exactness["found"]
    assert "deterministic" in exactness["remedy"]
    assert speed["ok"] is True
