"""Sampling with the real generators."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch
from scipy.stats import chi2

from tests.support.tables import constant, table
from trainenv.decoding.contract import Sampling, Settings
from trainenv.decoding.decoder import Decoder
from trainenv.decoding.drafters import CausalDrafter
from trainenv.decoding.rules import Exact, Pipelined
from trainenv.decoding.sampling import RowGenerators, distribution, draw, largest
from trainenv.types import UserError


def chi_square_p_value(target, rows, how):
    """Return the p-value of the next tokens, given the two before each, against the target's."""
    counts = defaultdict(Counter)
    for row in rows:
        for first, second, third in zip(row, row[1:], row[2:]):
            counts[first, second][third] += 1
    statistic = 0.0
    freedom = 0
    for (first, second), found in counts.items():
        total = sum(found.values())
        expected = distribution(target.logits[first, second], how) * total
        assert all(expected[token] > 0 for token in found)  # never outside top-p
        cells = [(found[token], float(want)) for token, want in enumerate(expected) if want >= 5]
        rest = total - sum(want for _, want in cells)
        if rest >= 5:
            cells.append((total - sum(seen for seen, _ in cells), rest))
        if len(cells) > 1:
            scale = sum(seen for seen, _ in cells) / sum(want for _, want in cells)
            statistic += sum((seen - scale * want) ** 2 / (scale * want) for seen, want in cells)
            freedom += len(cells) - 1
    assert freedom > 20
    return float(chi2.sf(statistic, freedom))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("rule", [Exact(), Pipelined()])
@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, top_p=0.8)])
def test_sampled_text_has_the_frequencies_of_the_target(rule, rows, how):
    target = table(5, seed=1, sharpness=0.8)
    drafter = CausalDrafter(model=table(5, seed=2, sharpness=0.8), cached=False)
    decoder = Decoder(
        target=target,
        drafter=drafter,
        rule=rule,
        settings=Settings(k=3, fallback_threshold=0.35),
        sampling=how,
        cached=False,
    )
    made = decoder.generate([[0, 1]] * rows, max_new_tokens=1200 // rows, end_tokens=(), seed=0)
    assert chi_square_p_value(target, made.sequences, how) > 0.01
    wrong = Sampling(temperature=2 * how.temperature, top_p=how.top_p)
    if how.top_p == 1:  # the test sees a temperature that is wrong
        assert chi_square_p_value(target, made.sequences, wrong) < 0.001


@pytest.mark.parametrize("rule", [Exact(), Pipelined()])
def test_rows_do_not_depend_on_their_neighbours(rule):
    target = table(4, seed=4)
    decoder = Decoder(
        target=target,
        drafter=CausalDrafter(model=table(4, seed=5), cached=False),
        rule=rule,
        settings=Settings(k=4, fallback_threshold=0.4),
        cached=False,
        dtype=torch.float64,
    )
    prompts = [[1], [2, 3], [3, 3, 3]]
    together = decoder.generate(prompts, max_new_tokens=40, end_tokens=[0], seed=7).new_tokens
    pairs = decoder.generate(prompts[:2], max_new_tokens=40, end_tokens=[0], seed=7).new_tokens
    assert pairs == together[:2]
    other = [[1], [0, 1, 2, 3, 0, 1], [2]]
    changed = decoder.generate(other, max_new_tokens=40, end_tokens=[0], seed=7).new_tokens
    assert changed[0] == together[0]
    assert (
        decoder.generate([[1]] * 3, max_new_tokens=40, end_tokens=(), seed=7).new_tokens[0]
        != (decoder.generate([[1]] * 3, max_new_tokens=40, end_tokens=(), seed=7).new_tokens[1])
    )


@pytest.mark.parametrize("alpha", [0.5, 0.9])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("rule", [Exact(), Pipelined()])
def test_tokens_a_call_follow_the_formula(alpha, k, rule):
    # Σ min(p, q) = α at every place
    target = constant([alpha / 2, alpha / 2, 1 - alpha, 1e-12])
    draft = constant([alpha / 2, alpha / 2, 1e-12, 1 - alpha])
    decoder = Decoder(
        target=target,
        drafter=CausalDrafter(model=draft, cached=False),
        rule=rule,
        settings=Settings(k=k, fallback_threshold=0.0),
        cached=False,
    )
    calls = 20
    made = decoder.generate([[0]] * 64, max_new_tokens=calls * (k + 1), end_tokens=(), seed=1)
    early = [grown for call in made.calls[1 : calls - 1] for grown in call.emitted]
    values = torch.tensor(early, dtype=torch.float64)
    error = float(values.std()) / len(early) ** 0.5
    full = (1 - alpha ** (k + 1)) / (1 - alpha)
    if not rule.drafts_ahead:
        assert float(values.mean()) == pytest.approx(full, abs=4 * error)
    else:  # after a draft that stayed whole, a call verifies one token less
        assert float(values.mean()) < full + 4 * error
        assert float(values.mean()) > (1 - alpha**k) / (1 - alpha) - 4 * error


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    kept = distribution(logits, Sampling(top_p=0.7))
    assert kept.tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert distribution(logits, Sampling(top_p=1e-9)).tolist() == [1, 0, 0, 0]
    assert distribution(logits, Sampling(temperature=0)).tolist() == [1, 0, 0, 0]
    assert distribution(logits, Sampling(temperature=0.5))[0] == pytest.approx(0.25 / 0.365)
    assert float(largest(logits)) == pytest.approx(0.5)


def test_impossible_tokens_are_never_drawn():
    chances = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    edges = torch.tensor([0.0, 0.2499, 0.25, 0.9999999, 1 - 2**-53], dtype=torch.float64)
    drawn = [int(draw(chances, edge.view(1))) for edge in edges]
    assert drawn == [1, 1, 3, 3, 3]


def test_drawing_from_tensors_of_any_layout_warns_of_nothing():
    logits = torch.randn(7, 3, 6, generator=torch.Generator().manual_seed(0)).transpose(0, 2)
    uniform = RowGenerators(0, torch.device("cpu")).uniform(range(6), 3)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # pytest makes an error of each warning
    try:
        for step in range(3):
            p = distribution(logits[:, step], Sampling(temperature=0.8, top_p=0.9))
            drawn = draw(p, uniform[:, step])
            assert torch.equal(drawn, draw(p.contiguous(), uniform[:, step].contiguous()))
            assert bool((p.gather(-1, drawn[:, None]) > 0).all())
    finally:
        torch.set_warn_always(always)


def test_generators_depend_on_seed_and_row_alone():
    device = torch.device("cpu")
    first = RowGenerators(1, device).uniform([0, 5], 4)
    second = RowGenerators(1, device)
    assert torch.equal(second.uniform([5], 2)[0], first[1, :2])
    assert torch.equal(second.uniform([5], 2)[0], first[1, 2:])
    assert not torch.equal(RowGenerators(2, device).uniform([5], 4)[0], first[1])


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"temperature": float("nan")}]
)
def test_sampling_out_of_range_is_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
