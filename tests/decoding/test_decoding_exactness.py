"""Distribution of decoded text, by enumeration of every path in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from tests.support.decoding_paths import law_of
from tests.support.tables import table
from trainenv.decoding import sampling
from trainenv.decoding.contract import Block, Draft, Sampling, Settings
from trainenv.decoding.decoder import Decoder
from trainenv.decoding.distances import (
    parts_of_next,
    target_law,
    text_law,
    total_variation,
)
from trainenv.decoding.drafters import CausalDrafter, PromptLookup
from trainenv.decoding.rules import RULES, Exact, Lossy, Pipelined
from trainenv.decoding.schedules import AcceptanceStop, Adaptive, Confidence, Heuristic

PROMPT = [1, 0]
EXACT = [name for name, rule in RULES.items() if rule.keeps_distribution]


def distance(first, second):
    """Return the total variation between two laws of text."""
    return float(total_variation(first.flatten(), second.flatten()))


def decoded_law(monkeypatch, target, drafter, rule, settings, how, length, schedule=None):
    """Return the law of the decoder's text over all of its paths."""
    decoder = Decoder(
        target=target,
        drafter=drafter,
        rule=rule,
        settings=settings,
        schedule=schedule,
        sampling=how,
        cached=False,
        dtype=torch.float64,
    )

    def run():
        made = decoder.generate([PROMPT], max_new_tokens=length, end_tokens=())
        return made.new_tokens[0]

    vocabulary = target.logits.shape[-1]
    return law_of(run, vocabulary=vocabulary, length=length, monkeypatch=monkeypatch)


CASES = [
    # vocabulary, length, K, fallback, top-p, temperature, temperature of the draft
    (2, 4, 1, 0.0, 1.0, 1.0, 1.0),
    (2, 4, 3, 0.0, 1.0, 1.0, 1.0),
    (2, 4, 3, 0.7, 1.0, 0.7, 0.7),
    (2, 4, 2, 0.7, 0.7, 1.0, 1.0),
    (2, 4, 4, 0.6, 1.0, 1.0, 2.0),
    (3, 3, 2, 0.5, 0.8, 1.0, 0.5),
    (3, 3, 2, 0.0, 1.0, 1.0, 0.0),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", EXACT)
def test_every_path_of_the_decoder_keeps_the_target(monkeypatch, rule, case):
    vocabulary, length, k, fallback, top_p, temperature, theirs = case
    target = table(vocabulary, seed=1)
    how = Sampling(temperature=temperature, top_p=top_p)
    drafter = CausalDrafter(
        model=table(vocabulary, seed=2),
        cached=False,
        sampling=Sampling(temperature=theirs, top_p=top_p),
    )
    settings = Settings(k=k, fallback_threshold=fallback)
    law = decoded_law(monkeypatch, target, drafter, RULES[rule](), settings, how, length)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert distance(law, target_law(target.after(PROMPT), length, how)) < 1e-12


SCHEDULES = [
    Adaptive(seconds=(1.0, 1.1, 1.2), memory=0.2, threshold=0.5, start=0.9),
    AcceptanceStop(weights=(0.5, 1.0, -0.5, 0.0, 0.0, 0.0), threshold=0.6, k=3),
    Confidence(threshold=0.5, most=3),
    Heuristic(start=1, most=3),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_every_path_of_a_schedule_keeps_the_target(monkeypatch, schedule, top_p):
    target = table(2, seed=1)
    how = Sampling(top_p=top_p)
    drafter = CausalDrafter(model=table(2, seed=2), cached=False)
    settings = Settings(k=3, fallback_threshold=0.0)
    law = decoded_law(monkeypatch, target, drafter, Exact(), settings, how, 4, schedule)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert distance(law, target_law(target.after(PROMPT), 4, how)) < 1e-12


@pytest.mark.parametrize("rule", EXACT)
def test_prompt_lookup_keeps_the_target(monkeypatch, rule):
    target = table(2, seed=3)
    law = decoded_law(
        monkeypatch, target, PromptLookup(), RULES[rule](), Settings(k=3), Sampling(), 4
    )
    assert distance(law, target_law(target.after(PROMPT), 4)) < 1e-12


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("fallback", [0.0, 0.5])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_exact_keeps_texts_of_five_tokens_vocabulary(k, fallback, top_p):
    target = table(5, seed=4).after(PROMPT)
    how = Sampling(temperature=0.9, top_p=top_p)
    law = text_law(
        target,
        table(5, seed=5).after(PROMPT),
        rule=Exact(),
        settings=Settings(k=k, fallback_threshold=fallback),
        length=3,
        sampling=how,
        draft_sampling=Sampling(temperature=1.3),
    )
    assert distance(law, target_law(target, 3, how)) < 1e-12


@pytest.mark.parametrize("top_p", [1.0, 0.6])
@pytest.mark.parametrize("vocabulary", [2, 6, 50])
def test_one_token_of_the_exact_rule_has_the_law_of_the_target(vocabulary, top_p):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(2, 40, 7, vocabulary, generator=generator, dtype=torch.float64)
    p = sampling.distribution(logits[0], Sampling(top_p=top_p))
    q = sampling.distribution(logits[1], Sampling(temperature=1.5, top_p=top_p))
    block = Block(
        row_ids=tuple(range(40)),
        tokens=torch.randint(vocabulary, (40, 7), generator=generator),
        counts=(7,) * 40,
        q=q,
        p=p,
        logits=logits[0],
    )
    for drawn in (q, None):
        parts = parts_of_next(
            Exact(), Block(**{**vars(block), "q": drawn}), Settings(fallback_threshold=0)
        )
        assert float(total_variation(sum(parts), p).max()) < 1e-12


@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize(
    ("fallback", "rollback", "how"),
    [
        (0.5, 1.0, Sampling()),
        (0.0, 1.5, Sampling(top_p=0.8)),
        (0.6, 0.3, Sampling(temperature=0.7)),
    ],
)
def test_enumerated_law_of_the_lossy_rule_is_that_of_the_decoder(
    monkeypatch, fallback, rollback, how, bonus
):
    target = table(3, seed=6)
    draft = table(3, seed=7)
    settings = Settings(k=2, fallback_threshold=fallback, rollback_threshold=rollback)
    rule = Lossy(bonus=bonus)
    drafter = CausalDrafter(model=draft, cached=False)
    found = decoded_law(monkeypatch, target, drafter, rule, settings, how, 3)
    law = text_law(
        target.after(PROMPT),
        draft.after(PROMPT),
        rule=rule,
        settings=settings,
        length=3,
        sampling=how,
    )
    assert distance(found, law) < 1e-12
    assert distance(law, target_law(target.after(PROMPT), 3, how)) > 0.003  # so the test has teeth


def test_lossy_rule_nears_the_target_as_its_thresholds_tighten():
    target = table(4, seed=8).after(PROMPT)
    draft = table(4, seed=9).after(PROMPT)
    exact = target_law(target, 3)

    def far(fallback, rollback):
        settings = Settings(k=3, fallback_threshold=fallback, rollback_threshold=rollback)
        return distance(text_law(target, draft, rule=Lossy(), settings=settings, length=3), exact)

    by_rollback = [far(0.0, nats) for nats in (0.0, 0.5, 2.0, 20.0)]
    assert by_rollback[0] < 1e-12  # every drafted token is replaced
    assert by_rollback[1] < by_rollback[3]
    assert far(1.1, 20.0) < 1e-12  # nothing is drafted
    assert far(0.6, 20.0) < by_rollback[3]


@dataclass(frozen=True, kw_only=True, eq=False)
class Wrong:
    """A drafter that misreports how its tokens came about."""

    inner: CausalDrafter
    how: str
    needs_states: bool = False

    def check(self, vocabulary, tokenizer):
        self.inner.check(vocabulary, tokenizer)

    def open(self, vocabulary):
        session = self.inner.open(vocabulary)
        return type("Session", (), {"propose": lambda _, request: self.altered(session, request)})()

    def altered(self, session, request):
        draft = session.propose(request)
        if not draft.tokens.shape[1]:
            return draft
        own = self.inner.model(torch.cat([torch.tensor([request.rows[0]]), draft.tokens], dim=1))
        logits = own.logits[:, len(request.rows[0]) - 1 : -1]
        made = {"tokens": draft.tokens, "counts": draft.counts, "calls": draft.calls}
        if self.how == "own probability":  # drops a token for its own q
            chances = logits.softmax(dim=-1).gather(-1, draft.tokens.unsqueeze(-1)).flatten()
            low = [place for place, chance in enumerate(chances.tolist()) if chance < 0.4]
            made["counts"] = (min([*low, *draft.counts]),)
            return Draft(**made, probabilities=draft.probabilities)
        return Draft(**made, probabilities=logits.softmax(dim=-1))


@pytest.mark.parametrize(
    ("how", "own"),
    [
        ("greedy draft with the softmax as q", Sampling(temperature=0.0)),
        ("own probability", Sampling()),
        ("unequal temperatures", Sampling(temperature=2.0)),
    ],
)
@pytest.mark.parametrize("rule", [Exact(), Pipelined()])
def test_known_mistakes_are_seen(monkeypatch, rule, how, own):
    target = table(3, seed=1)
    inner = CausalDrafter(model=table(3, seed=2), cached=False, sampling=own)
    settings = Settings(k=2, fallback_threshold=0.0)
    wrong = Wrong(inner=inner, how=how)
    law = decoded_law(monkeypatch, target, wrong, rule, settings, Sampling(), 2)
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    assert distance(law, target_law(target.after(PROMPT), 2)) > 0.01


def test_target_law_multiplies_conditionals():
    target = table(3, seed=1)
    law = target_law(target.after(PROMPT), 2)
    for first, second in itertools.product(range(3), repeat=2):
        known = target.after(PROMPT)
        expected = known(()).softmax(-1)[first] * known((first,)).softmax(-1)[second]
        assert float(law[first, second]) == pytest.approx(float(expected), rel=1e-12)
