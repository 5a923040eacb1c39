"""Drafters, the states that they can ask for, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.decoding.test_decoding_greedy import NEW, PROMPTS, generated, gpt2, llama
from tests.support.tables import table
from trainenv.decoding.contract import (
    GREEDY,
    Draft,
    DraftRequest,
    Settings,
    rollback_range,
)
from trainenv.decoding.decoder import Decoder
from trainenv.decoding.drafters import CausalDrafter, PromptLookup, first_layers
from trainenv.decoding.rules import NAMES, Exact, Lossy, Pipelined, make
from trainenv.decoding.sampling import RowGenerators
from trainenv.types import UserError


def request(rows, *, limits=(4,), unchanged=(0,)):
    return DraftRequest(
        rows=rows,
        row_ids=tuple(range(len(rows))),
        unchanged=unchanged,
        limits=limits,
        k=4,
        stop_below=0.0,
        sampling=GREEDY,
        dtype=torch.float64,
        end_tokens=frozenset(),
        source=RowGenerators(0, torch.device("cpu")),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),
        ([5, 1, 2, 9, 7, 1, 2, 8, 7, 1, 2], [8, 7, 1, 2]),  # the latest place
        ([3, 1, 2, 9, 3, 9, 1, 2, 0, 3, 1, 2], [9, 3, 9, 1]),  # the longest n-gram
        ([1, 2, 3], []),
        ([6, 6], [6]),
    ],
)
def test_prompt_lookup_copies_what_followed(text, expected):
    draft = PromptLookup().open(10).propose(request([text]))
    assert draft.tokens[0, : draft.counts[0]].tolist() == expected
    assert draft.probabilities is None


def test_prompt_lookup_forgets_tokens_that_were_rejected():
    session = PromptLookup().open(10)
    session.propose(request([[1, 2, 3, 4, 1, 5]]))
    text = [1, 2, 3, 4, 1]  # the last token did not stay
    draft = session.propose(request([[*text, 6, 1]], unchanged=(5,)))
    assert draft.tokens[0].tolist()[0] == 6
    fresh = PromptLookup().open(10).propose(request([[*text, 6, 1]]))
    assert draft.tokens.tolist() == fresh.tokens.tolist()


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """A drafter that proposes what the target's own head says at the last verified position."""

    target: nn.Module
    seen: list = field(default_factory=list)
    needs_states: bool = True

    def check(self, vocabulary, tokenizer):
        assert vocabulary == 24

    def open(self, vocabulary):
        return SimpleNamespace(propose=self.propose)

    def propose(self, asked):
        states = asked.target_states
        rows = len(asked.rows)
        assert states.last.shape == (rows, 16)
        # The head turns the state at a position into the token after it, which is known already.
        known = self.target.get_output_embeddings()(states.last).argmax(dim=-1).tolist()
        for row, position, token in zip(asked.rows, states.positions, known):
            self.seen.append(row[position + 1 :] in ([token], []))
        tokens = torch.tensor([[row[-1], 0] for row in asked.rows])
        return Draft(tokens=tokens, counts=(2,) * rows)


@pytest.mark.parametrize("make_model", [gpt2, llama])
@pytest.mark.parametrize("cached", [True, False])
def test_drafter_gets_the_state_at_the_last_verified_position(make_model, cached):
    target = make_model(2, 0)
    drafter = Heads(target=target)
    decoder = Decoder(
        target=target, drafter=drafter, sampling=GREEDY, cached=cached, dtype=torch.float64
    )
    made = decoder.generate(PROMPTS, max_new_tokens=NEW)
    assert made.new_tokens == generated(make_model, 2)
    assert made.calls[0].drafted == (0,) * len(PROMPTS)  # there are no states before the first
    assert len(drafter.seen) >= NEW
    assert all(drafter.seen)
    with pytest.raises(UserError, match="drafts ahead"):
        Decoder(target=target, drafter=drafter, rule=Pipelined())


def test_first_layers_share_the_weights_of_the_target():
    target = gpt2(3, 5)
    before = {name: tensor.data_ptr() for name, tensor in target.named_parameters()}
    drafter = first_layers(target, 1)
    shared = {name: tensor.data_ptr() for name, tensor in drafter.model.named_parameters()}
    assert shared == {name: before[name] for name in shared}
    assert len(drafter.model.transformer.h) == 1
    assert drafter.model.config.num_hidden_layers == 1
    assert len(target.transformer.h) == target.config.num_hidden_layers == 3
    with pytest.raises(UserError, match=r"below the number of blocks of the target \(3\), found 3"):
        first_layers(target, 3)
    with pytest.raises(UserError, match="layers"):
        first_layers(target, 0)


def words(*tokens):
    return SimpleNamespace(get_vocab=lambda: {token: i for i, token in enumerate(tokens)})


def test_vocabularies_that_differ_are_refused():
    target = table(4, seed=0)
    with pytest.raises(UserError, match="found 5 tokens and 4"):
        Decoder(
            target=target, drafter=CausalDrafter(model=table(5, seed=0), cached=False), cached=False
        )
    drafter = CausalDrafter(
        model=table(5, seed=0), cached=False, tokenizer=words("a", "b", "x", "y")
    )
    with pytest.raises(UserError, match="token 2: 'x' of the draft, 'c' of the target"):
        Decoder(target=target, drafter=drafter, cached=False, tokenizer=words("a", "b", "c", "d"))
    with pytest.raises(UserError, match="token 3: 'y' of the draft, none of the target"):
        Decoder(target=target, drafter=drafter, cached=False, tokenizer=words("a", "b", "x"))


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4)])
def test_padded_output_layers_serve_each_other(sizes):
    """One family, but the output layer of one model is padded to more tokens."""
    target = table(sizes[0], seed=1)
    same = words("a", "b", "c", "d")
    drafter = CausalDrafter(model=table(sizes[1], seed=2), cached=False, tokenizer=same)
    decoder = Decoder(
        target=target,
        drafter=drafter,
        cached=False,
        tokenizer=same,
        settings=Settings(fallback_threshold=0.0),
    )
    made = decoder.generate([[0, 1]], max_new_tokens=50, end_tokens=())
    assert max(made.new_tokens[0]) < sizes[0]


class NoCache(nn.Module):
    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))


def test_models_that_cannot_serve_are_refused():
    bare = NoCache().eval()
    lookup = PromptLookup()
    with pytest.raises(UserError, match=r"must have a cache .* set cached=False"):
        Decoder(target=bare, drafter=lookup)
    with pytest.raises(UserError, match="the draft must have a cache"):
        CausalDrafter(model=bare)
    Decoder(target=bare, drafter=lookup, cached=False)
    with pytest.raises(UserError, match=r"call model\.eval\(\)"):
        Decoder(target=NoCache(), drafter=lookup, cached=False)
    headless = gpt2(1, 1).transformer
    with pytest.raises(UserError, match="must be a causal language model, found GPT2Model"):
        Decoder(target=headless, drafter=lookup)
    with pytest.raises(UserError, match="dtype"):
        Decoder(target=bare, drafter=lookup, cached=False, dtype=torch.float16)


def test_prompts_that_cannot_be_continued_are_refused():
    decoder = Decoder(target=gpt2(2, 0), drafter=PromptLookup())
    with pytest.raises(UserError, match="at least one token"):
        decoder.generate([[1], []], max_new_tokens=3)
    with pytest.raises(UserError, match=r"must fit into the 64 positions .* found 60 and 5"):
        decoder.generate([[1] * 60], max_new_tokens=5)
    assert decoder.generate([[1] * 60], max_new_tokens=4).tokens == 4
    with pytest.raises(UserError, match="from 0 to 23, found 24"):
        decoder.generate([[24]], max_new_tokens=3)
    with pytest.raises(UserError, match="max_new_tokens"):
        decoder.generate([[1]], max_new_tokens=0)
    with pytest.raises(UserError, match=r"tensor \[B, T\]"):
        decoder.generate(torch.tensor([1, 2]), max_new_tokens=3)


def test_a_draft_with_fewer_positions_stops_drafting():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=24, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    config.eos_token_id = None
    short = GPT2LMHeadModel(config).double().eval()
    made = Decoder(
        target=gpt2(2, 0),
        drafter=CausalDrafter(model=short),
        settings=Settings(k=5, fallback_threshold=0.0),
        sampling=GREEDY,
        dtype=torch.float64,
    ).generate(PROMPTS, max_new_tokens=NEW)
    assert made.new_tokens == generated(gpt2, 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"k": 0}, "k must be a whole number"),
        ({"k": 17}, "k must be from 1 to 16, found 17"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"fallback_threshold": -0.1}, "fallback_threshold"),
        ({"fallback_threshold": math.nan}, "fallback_threshold"),
        ({"rollback_threshold": -1}, "rollback_threshold"),
        ({"rollback_threshold": math.nan}, "rollback_threshold"),
    ],
)
def test_settings_out_of_range_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        Settings(**bad)


def test_searched_thresholds_stay_in_their_intervals():
    assert rollback_range(16) == (1.0, 16.0)
    made = Settings.searched(fallback_threshold=0.95, rollback_threshold=8, k=8)
    assert (made.fallback_threshold, made.rollback_threshold, made.k) == (0.95, 8.0, 8)
    for bad in (
        {"fallback_threshold": 0.96, "rollback_threshold": 3},
        {"fallback_threshold": 0.04, "rollback_threshold": 3},
        {"fallback_threshold": 0.5, "rollback_threshold": 9},
        {"fallback_threshold": 0.5, "rollback_threshold": 0.5},
    ):
        with pytest.raises(UserError, match="threshold must be"):
            Settings.searched(**bad, k=8)


def test_rollback_threshold_can_be_a_probability():
    made = Settings.with_probability(rollback_probability=0.05)
    assert made.rollback_threshold == pytest.approx(-math.log(0.05))
    assert made.rollback_probability == pytest.approx(0.05)
    assert Settings.with_probability(rollback_probability=0).rollback_threshold == math.inf
    assert Settings.with_probability(rollback_probability=1).rollback_threshold == 0
    with pytest.raises(UserError, match="rollback_probability"):
        Settings.with_probability(rollback_probability=1.5)


def test_rules_are_made_by_name():
    assert NAMES == ("exact", "lossy", "pipelined")
    assert make("lossy", bonus=False) == Lossy(bonus=False)
    assert make("exact") == Exact()
    with pytest.raises(UserError, match=r"rule must be one of .* did you mean"):
        make("exactt")
    with pytest.raises(UserError, match="lossy has no hyperparameter"):
        make("lossy", bonsu=True)
