"""Losses are weighed on the device of the labels: no step waits, and the numbers are those of the host."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.padding import LENGTH, OBJECTIVES, mean, padded, run_of, step, weights
from trainenv.training import backward, micro_batches
from trainenv.training.micro_batches import labelled
from trainenv.types import CLIP_POLICIES


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be read on the host but by who reads the telemetry."""
    for module in (backward, micro_batches):
        monkeypatch.setattr(module, "host_reads_are_free", lambda tensor: False)


def test_counts_stay_tensors() -> None:
    ids, labels = padded([8, 3])
    counts = labelled([(ids, labels), {"input_ids": ids, "labels": ids}, ids])
    assert [isinstance(count, Tensor) for count in counts] == [True, True, False]
    assert [int(count) for count in counts] == [11, 16, 14]  # shifted in both, or in neither
    assert [int(count) for count in labelled([{"input_ids": ids, "labels": ids}])] == [14]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, LENGTH), min_size=4, max_size=4).filter(any),
    accumulation=st.sampled_from([1, 2, 4]),
    name=st.sampled_from(sorted(OBJECTIVES)),
    arc=st.booleans(),
)
def test_accumulated_steps_are_those_of_one_big_batch(
    lengths: list[int], accumulation: int, name: str, arc: bool
) -> None:
    data = padded(lengths)
    clip: dict[str, Any] = (
        {"policy": "arc", "options": {"arc": {"suspected": 0.0}}} if arc else {"policy": "none"}
    )
    whole, parts = (
        run_of(data),
        run_of(
            data, OBJECTIVES[name], accumulation=accumulation, clip=clip, validation=[data, data]
        ),
    )
    first = mean(whole.model, data).item()
    assert parts.evaluate() == pytest.approx(first, rel=1e-12)
    one, many = step(whole), step(parts)
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    assert many.tokens == sum(lengths)
    assert torch.allclose(weights(parts), weights(whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", CLIP_POLICIES)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_step_without_labels_has_the_gradient_0(
    name: str, accumulation: int, policy: str
) -> None:
    def data(index: int) -> tuple[Tensor, Tensor]:
        return padded([0, 0] if index == 2 else [8, 5], seed=index)

    run = run_of(
        data, OBJECTIVES[name], torch.float32, accumulation=accumulation, clip={"policy": policy}
    )
    run.advance(2)
    before, clipper = weights(run), run._clipper.state_dict()
    nothing = step(run)
    assert math.isnan(nothing.loss)
    assert (nothing.tokens, nothing.grad_norm) == (0, 0.0)
    assert torch.equal(weights(run), before)
    after = run._clipper.state_dict()
    assert all(torch.equal(after[key], clipper[key]) for key in clipper if key != "step")
    assert all(math.isfinite(t.loss) for t in run.advance(3))


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4])
def test_equal_counts_have_the_bits_of_the_host(
    accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = padded([LENGTH] * 12)
    there = run_of(data, dtype=torch.float32, accumulation=accumulation)
    found = [t.loss for t in there.advance(3)]
    monkeypatch.undo()
    here = run_of(data, dtype=torch.float32, accumulation=accumulation)
    assert [t.loss for t in here.advance(3)] == found
    assert there.fingerprint() == here.fingerprint()
