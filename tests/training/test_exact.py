"""A restore that must be exact: every setting that bits depend on is compared, and rounded moments are refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainenv.config.schema import TrainingConfig
from trainenv.run import TrainingRun
from trainenv.training import numerics as devices
from trainenv.training import snapshots
from trainenv.types import Snapshot, UserError

SMALL: dict[str, Any] = {
    "steps": 30,
    "threads": 1,
    "batch_size": 4,
    "model": {"width": 32, "layers": 1, "heads": 2, "context": 32},
    "validation": {"every": 0, "sequences": 4},
}
OTHERS = {
    "torch": "1.0",
    "numpy": "1.0",
    "transformers": None,
    "python": "2.7",
    "device": "ENIAC",
    "threads": 2,
    "precision": "bf16",
    "matmul": "tf32",
    "deterministic": True,
    "attention": "eager",
    "fused": False,
    "compiled": True,
    "dtypes": ["bfloat16"],
}
CPU = torch.device("cpu")


def made(**settings: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", {**SMALL, **settings})


def numerics(model: nn.Module, fused: bool | None = None, **settings: Any) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    return devices.numerics(
        model, optimizer, CPU, TrainingConfig.model_validate({"steps": 3, **settings})
    )


def test_what_bits_depend_on() -> None:
    run = made()
    found = run.snapshot().state["numerics"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "transformers": metadata.version("transformers"),
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name()
        if run.device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "precision": "fp32",
        "matmul": found["matmul"],
        "deterministic": False,
        "attention": "sdpa",
        "fused": True,
        "compiled": False,
        "dtypes": ["float32"],
    }


def test_of_a_model_of_one_s_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    found = numerics(model, threads=3, precision="bf16", deterministic=True)
    assert (found["attention"], found["fused"], found["compiled"]) == (None, False, False)
    assert found["dtypes"] == ["bfloat16", "float32"]
    assert (found["threads"], found["precision"], found["deterministic"]) == (3, "bf16", True)
    assert numerics(nn.Linear(2, 2), fused=True)["fused"]
    assert numerics(nn.Linear(2, 2))["threads"] == torch.get_num_threads()


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, while it imports its compiler
def test_a_compiled_model_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].compile()
    assert numerics(model)["compiled"]
    assert numerics(torch.compile(nn.Linear(2, 2)))["compiled"]  # type: ignore[arg-type]  # torch's annotation is off


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    devices._version.cache_clear()
    try:
        assert numerics(nn.Linear(2, 2))["transformers"] is None
    finally:
        devices._version.cache_clear()


# ── asked for ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exact_snapshot_is_taken() -> None:
    run, other = made(), made()
    run.advance(3)
    snapshot = run.snapshot()
    other.restore(snapshot, exact=True)
    assert other.fingerprint() == run.fingerprint()
    run.restore(snapshot, exact=True)


def refused(run: TrainingRun, snapshot: Snapshot, message: str) -> None:
    """Refused if it must be exact, the run left as it is; taken otherwise."""
    run.advance(2)
    before = run.fingerprint()
    with pytest.raises(UserError, match=message):
        run.restore(snapshot, exact=True)
    assert run.fingerprint() == before
    run.restore(snapshot)
    assert run.step == snapshot.step


def test_rounded_moments_are_refused() -> None:
    run = made()
    run.advance(3)
    message = r"the moments of this snapshot were rounded to 8 bits.*restore it without exact=True, or save with moments='exact'"
    refused(run, replace(run.snapshot(), tier="8bit"), message)


@pytest.mark.parametrize(
    ("setting", "value"),
    OTHERS.items(),
)
def test_each_setting_is_compared_and_named(setting: str, value: Any) -> None:
    run = made()
    run.advance(1)
    snapshot = run.snapshot()
    numerics = snapshot.state["numerics"] | {setting: value}
    here = snapshot.state["numerics"][setting]
    changed = replace(snapshot, state={**snapshot.state, "numerics": numerics})
    refused(run, changed, re.escape(f"found {setting} {value!r} (here {here!r}): it would not"))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"threads": 2}, r"found threads 1 \(here 2\): it"),
        (
            {"precision": "bf16", "deterministic": True},
            r"found deterministic False \(here True\), precision 'fp32' \(here 'bf16'\): it",
        ),
    ],
)
def test_runs_under_other_settings_refuse(settings: dict[str, Any], found: str) -> None:
    snapshot = made().snapshot()
    refused(made(**settings), snapshot, found)


def test_what_is_not_told_is_not_the_same() -> None:
    run = made()
    snapshot = run.snapshot()
    state = {name: part for name, part in snapshot.state.items() if name != "numerics"}
    refused(run, replace(snapshot, state=state), r"attention None \(here 'sdpa'\)")


def test_another_model_is_told_before_another_setting() -> None:
    snapshot = made(**{"model.width": 16}).snapshot()
    with pytest.raises(UserError, match="of another model"):
        made(threads=2).restore(snapshot, exact=True)


def test_weights_of_another_dtype_are_another_model() -> None:
    run, other = made(), made()
    other.model.bfloat16()  # type: ignore[no-untyped-call]
    with pytest.raises(
        UserError, match=r"should be bfloat16 \[256, 32\], found float32 \[256, 32\]"
    ):
        other.restore(run.snapshot())


@pytest.mark.parametrize(
    "change",
    [lambda s: replace(s, tier="8bit"), lambda s: replace(s, state={**s.state, "numerics": {}})],
)
def test_the_fingerprint_leaves_both_out(change: Callable[[Snapshot], Snapshot]) -> None:
    run = made()
    before = run.fingerprint()
    run.restore(change(run.snapshot()))
    assert run.fingerprint() == before
    assert snapshots.fingerprint(replace(run.snapshot(), tier="8bit")) == snapshots.fingerprint(
        run.snapshot()
    )
