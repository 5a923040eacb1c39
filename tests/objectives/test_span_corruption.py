"""Span corruption: cases by hand, and what holds for every sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainenv.objectives import SpanCorruption
from trainenv.objectives.span_corruption import (
    Lengths,
    lengths_for,
    lengths_of,
    noise_mask,
)
from trainenv.types import UserError


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def restored(task: SpanCorruption, inputs: Any, targets: Any) -> list[int]:
    """The text: each sentinel of the inputs replaced by what follows it in the targets."""
    assert inputs[-1] == targets[-1] == task.end
    spans: dict[int, list[int]] = {}
    for token in targets[:-1].tolist():
        if token > task.end:
            assert token not in spans
            spans[token] = []
            last = spans[token]
        else:
            last.append(token)
    assert all(spans.values())
    sentinels = [token for token in inputs.tolist() if token > task.end]
    assert (
        sentinels == list(spans) == [task.vocabulary - 1 - place for place in range(len(sentinels))]
    )
    text: list[int] = []
    for token in inputs[:-1].tolist():
        text += spans.get(token, [token])
    return text


# ── by hand ─────────────────────────────────────────────────────────────────────────────────────


def test_the_published_lengths() -> None:
    """512 inputs of T5 come from 568 tokens, with 114 targets; 1024 from 1137, with 229."""
    assert lengths_for(512, 0.15, 3.0) == Lengths(568, 85, 28, 512, 114)
    assert lengths_for(1024, 0.15, 3.0)[0::4] == (1137, 229)


def test_the_example_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    task = SpanCorruption(text_vocabulary=len(words), sentinels=3)
    mask = np.array([[word in ("for", "inviting", "last") for word in words]])
    monkeypatch.setattr("trainenv.objectives.span_corruption.noise_mask", lambda *_: mask)
    inputs, targets = task.corrupt(np.arange(len(words))[None], generator())
    names = [*words, "<start>", "<end>", "<Z>", "<Y>", "<X>"]
    assert " ".join(names[token] for token in inputs[0]) == (
        "Thank you <X> me to your party <Y> week <end>"
    )
    assert " ".join(names[token] for token in targets[0]) == ("<X> for inviting <Y> last <Z> <end>")


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (2, Lengths(2, 1, 1, 3, 3)),  # at least one token of either kind
        (10, Lengths(10, 2, 1, 10, 4)),  # 1.5 is rounded to an even number
        (30, Lengths(30, 4, 1, 28, 6)),
        (70, Lengths(70, 10, 3, 64, 14)),
    ],
)
def test_lengths_by_hand(tokens: int, found: Lengths) -> None:
    assert lengths_of(tokens, 0.15, 3.0) == found


def test_two_tokens_have_one_way() -> None:
    task = SpanCorruption(text_vocabulary=5, sentinels=1)
    inputs, targets = task.corrupt(np.array([[3, 4]]), generator())
    assert inputs.tolist() == [[3, 7, 6]]
    assert targets.tolist() == [[7, 4, 6]]


def test_all_splits_are_alike_probable() -> None:
    """Four kept and four noise tokens in two spans each: 3 × 3 masks."""
    lengths = lengths_of(8, 0.5, 2.0)
    assert lengths[:3] == (8, 4, 2)
    masks = noise_mask(9000, lengths, generator())
    found, counts = np.unique(masks, axis=0, return_counts=True)
    assert len(found) == 9
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


# ── for every sequence ──────────────────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(2, 300),
    rows=st.integers(1, 4),
    share=st.floats(0.01, 0.95),
    mean_span=st.floats(1, 12),
    seed=st.integers(0, 2**32),
)
def test_nothing_is_lost(tokens: int, rows: int, share: float, mean_span: float, seed: int) -> None:
    lengths = lengths_of(tokens, share, mean_span)
    task = SpanCorruption(
        text_vocabulary=50, sentinels=lengths.spans, share=share, mean_span=mean_span
    )
    text = generator(seed).integers(50, size=(rows, tokens))
    inputs, targets = task.corrupt(text, generator(seed + 1))
    assert inputs.shape == (rows, lengths.inputs)
    assert targets.shape == (rows, lengths.targets)
    assert inputs.dtype == targets.dtype == np.int64
    assert max(inputs.max(), targets.max()) == task.vocabulary - 1
    for row in range(rows):
        assert restored(task, inputs[row], targets[row]) == text[row].tolist()
    again, other = task.corrupt(text, generator(seed + 1))
    assert np.array_equal(again, inputs)
    assert np.array_equal(other, targets)


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(2, 600), seed=st.integers(0, 2**32))
def test_spans_do_not_touch(tokens: int, seed: int) -> None:
    lengths = lengths_of(tokens, 0.15, 3.0)
    (mask,) = noise_mask(1, lengths, generator(seed))
    assert mask.sum() == lengths.noise
    assert not mask[0]
    starts = mask[1:] & ~mask[:-1]
    assert starts.sum() == lengths.spans


@settings(max_examples=60, deadline=None)
@given(inputs=st.integers(3, 700), share=st.floats(0.01, 0.5), mean_span=st.floats(1, 9))
def test_the_longest_text_that_fits(inputs: int, share: float, mean_span: float) -> None:
    found = lengths_for(inputs, share, mean_span)
    assert found.inputs <= inputs
    assert lengths_of(found.tokens + 1, share, mean_span).inputs > inputs


def test_share_and_mean_length() -> None:
    lengths = lengths_of(568, 0.15, 3.0)
    masks = noise_mask(200, lengths, generator())
    assert masks.mean() == pytest.approx(0.15, abs=0.001)
    starts = (masks[:, 1:] & ~masks[:, :-1]).sum()
    assert masks.sum() / starts == pytest.approx(3.0, abs=0.05)
    # Noise is nearly everywhere alike probable, apart from the edges.
    assert masks[:, 50:500].mean() == pytest.approx(0.15, abs=0.01)


# ── the loss ────────────────────────────────────────────────────────────────────────────────────


class Reader(nn.Module):
    """Model of which each logit is a function of the input before it and of the target before it."""

    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        self.seen = (input_ids, decoder_input_ids)
        return torch.eye(12)[decoder_input_ids] * 3


def test_the_loss_is_the_mean_over_the_targets() -> None:
    task = SpanCorruption(text_vocabulary=8, sentinels=2)
    micro = {"input_ids": torch.tensor([[1, 11, 9]]), "labels": torch.tensor([[11, 2, 2, 9]])}
    model = Reader()
    loss = task(model, micro)
    inputs, decoder = model.seen
    assert torch.equal(inputs, micro["input_ids"])
    assert decoder.tolist() == [[8, 11, 2, 2]]
    partition = np.log(np.exp(3) + 11)
    assert loss.item() == pytest.approx(partition - 3 / 4)  # one of four repeats its predecessor


@pytest.mark.parametrize(
    "wrong", [{"share": 0.0}, {"share": 1.0}, {"mean_span": 0.5}, {"sentinels": 0}]
)
def test_bad_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="span corruption needs 0 < share < 1"):
        SpanCorruption(**{"text_vocabulary": 8, "sentinels": 2, **wrong})  # type: ignore[arg-type]


def test_too_few_sentinels_and_too_short_inputs() -> None:
    task = SpanCorruption(text_vocabulary=8, sentinels=2)
    with pytest.raises(UserError, match="at most 2 spans, one for each sentinel, found 3"):
        task.corrupt(np.zeros((1, 70), np.int64), generator())
    with pytest.raises(UserError, match=r"inputs of at least 3 tokens .* found 2; take a larger"):
        lengths_for(2, 0.15, 3.0)
