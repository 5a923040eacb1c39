"""Details of an alarm: norms by layer, the largest attention logit, and nothing on quiet steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.alarms import fires_at
from tests.support.bigram import tokens
from tests.support.own_runs import config, go, run_of
from trainenv.loop import train
from trainenv.monitor import alarm_detail
from trainenv.monitor.alarm_detail import LayerNorms, largest_logits, layer_names
from trainenv.records.run_folder import read_events
from trainenv.report.run.run_report import RunReport
from trainenv.run import TrainingRun

SMALL = {
    "steps": 40,
    "model": {"width": 16, "layers": 3, "heads": 2, "context": 16},
    "batch_size": 4,
    "monitor": {"block": 8, "probe_every": 8},
    "schedule.warmup": 5,
}


def small(**more: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", SMALL | more)


@pytest.mark.parametrize("clip", ["none", "zclip", "adagc", "skip_step"])
def test_norms_are_those_of_the_gradients_by_layer(
    clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fires_at(monkeypatch, 6)
    run = small(**{"clip.policy": clip})
    seen: dict[str, float] = {}
    step = type(run)._update

    def watched(self: TrainingRun, batch: Any, done: Any) -> None:
        if self.step == 5:
            names = layer_names(self.model, self._parameters)
            for name, p in zip(names, self._parameters, strict=True):
                seen[name] = seen.get(name, 0.0) + float(p.grad.square().sum())  # type: ignore[union-attr]
        step(self, batch, done)

    monkeypatch.setattr(TrainingRun, "_update", watched)
    run.advance(8)
    found = run.diagnosis(6)
    blocks = [f"transformer.h.{n}" for n in range(3)]
    assert set(found["layers"]) == {
        "transformer.wte",
        "transformer.wpe",
        "transformer.ln_f",
        *blocks,
    }
    assert found["layers"] == {
        name: pytest.approx(math.sqrt(square), rel=1e-5) for name, square in seen.items()
    }
    assert run.diagnosis(5) == {}  # no alarm


def test_layer_whose_norm_is_unusual_is_named() -> None:
    norms, layers = LayerNorms(), ["a", "b", "b"]
    for step, values in enumerate(([10.0, 3.0, 4.0], [11.0, 3.0, 4.0], [12.0, 30.0, 40.0]), 1):
        norms.append(step, torch.tensor(values), [torch.zeros(1)] * 3)
    norms.close_block()
    found = norms.of(3, layers)
    assert found["layers"] == {"a": 12.0, "b": 50.0}
    assert (found["layer"], found["layer_ratio"]) == ("b", 10.0)
    norms.append(4, torch.tensor([9.0, math.nan, 1.0]), [torch.zeros(1)] * 3)
    norms.close_block()
    alone = norms.of(4, layers)
    assert (alone["layer"], alone["layer_ratio"]) == ("b", None)
    assert norms.of(3, layers) == {}


def test_parameters_without_a_gradient_have_no_norm() -> None:
    with_gradient, without = torch.zeros(1), torch.zeros(1)
    with_gradient.grad = torch.ones(1)
    norms = LayerNorms()
    norms.append(1, torch.tensor([2.0]), [without, with_gradient])
    norms.append(2, None, [without, with_gradient])
    norms.close_block()
    assert norms.of(1, ["a", "b"])["layers"] == {"b": 2.0}
    assert norms.of(2, ["a", "b"]) == {}


def test_largest_attention_logit_is_that_of_the_softmax() -> None:
    run = small()
    run.advance(8)
    micro = run._batch_of(3).micro[0]
    found = largest_logits(run.model, lambda: run.model(micro[:, :-1]))
    expected = []
    hidden = []
    hook = run.model.transformer.h[1].attn.c_attn.register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: hidden.append(output.detach())
    )
    run.model(micro[:, :-1])
    hook.remove()
    queries, keys, _ = (
        part.unflatten(-1, (2, 8)).transpose(1, 2) for part in hidden[0].chunk(3, -1)
    )
    for head in range(2):
        logits: Tensor = queries[:, head] @ keys[:, head].transpose(-1, -2) / math.sqrt(8)
        expected.append(float(logits.tril().masked_fill(logits.tril() == 0, -math.inf).max()))
    assert len(found) == 3
    assert found[1] == pytest.approx(max(expected), rel=1e-5)


def test_diagnosis_changes_no_state_and_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    fires_at(monkeypatch, 6, 6)  # in each of the two runs
    run, other = small(**{"model.dropout": 0.1}), small(**{"model.dropout": 0.1})
    run.advance(8)
    other.advance(8)
    before = run.ledger["evaluate"]
    assert run.diagnosis(6)["attention_logit"] > -math.inf
    assert run.ledger["evaluate"] - before == pytest.approx(run.flops_per_step / 3)
    assert go(run, 8) == go(other, 8)


def test_quiet_steps_read_and_compute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norms that the clip policy has made are kept; no other tensor is made of them."""
    made: list[Tensor] = []
    append = LayerNorms.append

    def noted(self: LayerNorms, step: int, norms: Any, parameters: Any) -> None:
        made.append(norms)
        append(self, step, norms, parameters)
        assert self._unread[step][0] is norms

    def forbidden(*_: Any) -> Any:
        raise AssertionError("computed on a quiet step")

    monkeypatch.setattr(LayerNorms, "append", noted)
    monkeypatch.setattr(LayerNorms, "of", forbidden)
    monkeypatch.setattr(alarm_detail, "layer_names", forbidden)
    monkeypatch.setattr("trainenv.run.largest_logits", forbidden)
    run = run_of()
    run.advance(9)
    assert len(made) == 9
    assert run.diagnosis(3) == {}


def test_event_and_report_name_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fires_at(monkeypatch, 13)
    train(small(), tmp_path / "run")
    events = read_events(tmp_path / "run")
    (fired,) = [event for event in events if event["kind"] == "fired"]
    detail = fired["detail"]
    assert detail["layer"] in detail["layers"]
    report = RunReport(tmp_path / "run")
    assert f"in {detail['layer']}" in report.tree(250)
    assert "largest attention logit" in report.tree(250)
    assert detail["layer"] in report.html().read_text()


def test_models_without_known_attention_have_norms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fires_at(monkeypatch, 2)
    run = run_of(batches=tokens, config=config(monitor={"block": 4, "probe_every": 2}))
    run.advance(4)
    assert set(run.diagnosis(2)) == {"layers", "layer", "layer_ratio"}
    assert set(run.diagnosis(2)["layers"]) == {"0", "1"}
