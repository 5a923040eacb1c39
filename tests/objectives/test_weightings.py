"""Weights of tokens: the critic's advantages and values, Rho-1's selection, and the controls."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.support.mtp_models import VOCABULARY, gpt2, samples, targets, tokens
from trainenv.objectives import MTP
from trainenv.objectives.measures import WeightMeasures, value_measures
from trainenv.objectives.reference import check_tokenizers, reference_losses
from trainenv.objectives.weightings import (
    NAMES,
    Critic,
    LowExcess,
    RandomSelection,
    Rho1,
    Shuffled,
    make,
)
from trainenv.objectives.weightings.critic import td_errors
from trainenv.types import UserError

# ── the critic ────────────────────────────────────────────────────────────────────────────────────


def test_the_best_value_of_a_prefix_is_its_rate_of_success() -> None:
    """A table with one value for each prefix of a tree is the simplest value head there is."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2, (200, 4), generator=generator)
    rewards = (torch.rand(200, generator=generator) < 0.2 + 0.2 * drawn.sum(1)).float()
    prefixes = [[tuple(row[:length].tolist()) for length in range(4)] for row in drawn]
    names = sorted({prefix for row in prefixes for prefix in row})
    places = torch.tensor([[names.index(prefix) for prefix in row] for row in prefixes])
    rates = torch.tensor(
        [float(rewards[(places == place).any(1)].mean()) for place in range(len(names))]
    )
    labelled = torch.ones(200, 4, dtype=torch.bool)
    table = nn.Parameter(rates.double().clone())
    loss = Critic().value_loss(table[places], None, rewards.double(), labelled)
    (at_best,) = torch.autograd.grad(loss, table)
    assert at_best.abs().max() < 1e-7  # the rates are float32
    assert len({round(float(rate), 3) for rate in rates}) > 5
    other = nn.Parameter(torch.full_like(table, 0.5))
    optimizer = torch.optim.LBFGS([other], lr=0.5, max_iter=200, tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = Critic().value_loss(other[places], None, rewards.double(), labelled)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(other.detach(), rates.double(), atol=5e-4, rtol=0)


def test_td_errors_add_up_to_the_reward_less_the_first_value() -> None:
    data = samples(rows=6)
    labelled = data["labels"][:, 1:] != -100
    values = torch.rand(labelled.shape, dtype=torch.float64)
    errors = td_errors(values, data["reward"], labelled, 1.0)
    first = labelled.int().argmax(1)
    expected = data["reward"] - values[torch.arange(6), first]
    torch.testing.assert_close(errors.sum(1), expected.double(), atol=1e-12, rtol=0)


def test_td_errors_by_hand() -> None:
    values = torch.tensor([[0.5, 0.6, 0.2, 0.9]])
    labelled = torch.tensor([[False, True, True, False]])
    found = td_errors(values, torch.tensor([1.0]), labelled, 0.5)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5 * 0.2 - 0.6, 1 - 0.2, 0.0]]))
    assert not td_errors(values, torch.tensor([math.nan]), labelled, 0.5).any()


def test_generalised_advantages_by_hand_and_at_lambda_1() -> None:
    values = torch.tensor([[0.5, 0.6, 0.2, 0.9]])
    labelled = torch.tensor([[False, True, True, False]])
    reward = torch.tensor([1.0])
    found = Critic(lam=0.5, gamma=0.5).advantages(values, reward, labelled)
    torch.testing.assert_close(found, torch.tensor([[0.0, -0.5 + 0.25 * 0.8, 0.8, 0.0]]))
    whole = Critic(lam=1.0).advantages(values, reward, labelled)  # R − V(s) at each token
    torch.testing.assert_close(whole, torch.tensor([[0.0, 0.4, 0.8, 0.0]]))


def test_value_clipping_by_hand() -> None:
    critic = Critic(value_clip=0.2)
    one = torch.ones(1, 1, dtype=torch.bool)

    def loss(value: float, earlier: float, reward: float) -> float:
        parts = (torch.tensor([[value]]), torch.tensor([[earlier]]), torch.tensor([reward]))
        return float(critic.value_loss(*parts, one))

    assert loss(0.6, 0.5, 1.0) == pytest.approx(0.4**2)  # within the clip
    assert loss(0.9, 0.5, 1.0) == pytest.approx(0.3**2)  # no gain beyond 0.7
    assert loss(0.2, 0.5, 1.0) == pytest.approx(0.8**2)  # away from the reward: the full error
    assert loss(0.1, 0.5, 0.0) == pytest.approx(0.3**2)
    free = Critic(value_clip=None).value_loss(
        torch.tensor([[0.9]]), torch.tensor([[0.5]]), torch.ones(1), one
    )
    assert float(free) == pytest.approx(0.1**2)


def test_weights_are_clamped_and_whitening_makes_them_differ() -> None:
    advantage = torch.tensor([[-9.0, -0.09, 0.0, 0.09, 9.0]])
    found = Critic().weights(targets(torch.zeros(1, 5), advantage=advantage))
    expected = [0.1, math.exp(-0.1), 1.0, math.exp(0.1), 5.0]
    assert found.flatten().tolist() == pytest.approx(expected)
    labelled = torch.ones(2, 3, dtype=torch.bool)
    values = torch.tensor([[0.50, 0.51, 0.52], [0.50, 0.49, 0.48]])
    rewards = torch.tensor([0.55, 0.45])
    plain = Critic().advantages(values, rewards, labelled)
    white = Critic(whiten=True).advantages(values, rewards, labelled)
    assert plain.abs().max() < 0.1
    assert float(white.mean()) == pytest.approx(0, abs=1e-6)
    assert float(white.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_no_gradient_flows_from_the_weights_into_the_values() -> None:
    model = gpt2(value=True)
    critic = Critic(value_steps=0, value_coefficient=0.0)
    MTP(weighting=critic)(model, samples()).backward()
    gradient = model.future_heads.value.weight.grad  # type: ignore[union-attr]
    assert gradient is None or not gradient.any()


def test_the_value_head_is_trained_alone_first() -> None:
    model = gpt2(value=True)
    objective = MTP(weighting=Critic(value_steps=2, refresh_steps=3), calls_per_step=2)
    trained = []
    for _ in range(8):
        model.zero_grad(set_to_none=True)
        objective(model, samples()).backward()
        trained.append(sorted(name for name, p in model.named_parameters() if p.grad is not None))
    assert trained[:4] == [["future_heads.value.bias", "future_heads.value.weight"]] * 4
    assert trained[4:] == [sorted(name for name, _ in model.named_parameters())] * 4
    assert objective.step == 4
    heads = model.future_heads
    with torch.no_grad():
        heads.value.bias.add_(1.0)  # type: ignore[union-attr]
    drift = []
    for _ in range(4):
        objective(model, samples())
        drift.append(float(objective.measured()["value_drift"]))
    assert drift[0] > 0.1
    assert drift[2] == 0  # step 5 is the third of the second stage


def test_a_head_is_weighted_by_the_advantage_of_the_token_that_it_predicts() -> None:
    advantage = torch.arange(8.0).repeat(4, 1)
    seen = {}

    class Noted(Critic):
        def weights(self, targets: object, /) -> Tensor:
            seen[targets.head] = targets.advantage  # type: ignore[attr-defined]
            return super().weights(targets)  # type: ignore[arg-type]

        def advantages(self, *_: object) -> Tensor:  # type: ignore[override]
            return advantage

    MTP(weighting=Noted(value_steps=0))(gpt2(value=True), samples())
    assert [seen[head][0, 0].item() for head in range(4)] == [0, 1, 2, 3]
    assert [seen[head].shape[1] for head in range(4)] == [8, 7, 6, 5]


# ── selection by a reference ──────────────────────────────────────────────────────────────────────


def planted() -> tuple[Tensor, Tensor, list[str]]:
    """Return losses of model and reference for tokens of three kinds, in turn."""
    kinds = ["learnable"] * 6 + ["noise"] * 2 + ["known"] * 2
    model = {"learnable": 5.0, "noise": 6.0, "known": 0.1}
    reference = {"learnable": 0.5, "noise": 6.0, "known": 0.1}
    loss = torch.tensor([[model[kind] for kind in kinds]])
    return loss, torch.tensor([[reference[kind] for kind in kinds]]), kinds


def test_rho1_keeps_the_learnable_tokens_and_the_mistaken_form_the_others() -> None:
    loss, reference, kinds = planted()
    kept = Rho1(kept_share=0.6).weights(targets(loss, reference=reference))
    assert {kind for kind, weight in zip(kinds, kept[0]) if weight} == {"learnable"}
    assert int(kept.sum()) == 6
    low = LowExcess(kept_share=0.6).weights(targets(loss, reference=reference))
    assert {kind for kind, weight in zip(kinds, low[0]) if weight} == {"noise", "known"}


@pytest.mark.parametrize("count", [1, 2, 5, 7, 64])
def test_exactly_the_share_of_the_valid_tokens_is_kept(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    loss, reference = torch.rand((2, 4, 16), generator=generator)
    valid = torch.zeros(64, dtype=torch.bool)
    valid[torch.randperm(64, generator=generator)[:count]] = True
    seen = targets(loss, valid.view(4, 16), reference=reference)
    weights = Rho1(kept_share=0.6).weights(seen)
    chosen = math.floor(0.6 * count + 0.5)
    assert int(weights.sum()) == chosen
    assert not weights[~seen.valid].any()
    best = sorted(seen.excess[seen.valid].tolist(), reverse=True)[:chosen]
    assert sorted(seen.excess[weights > 0].tolist(), reverse=True) == best
    random = RandomSelection(kept_share=0.6).weights(seen)
    assert int(random.sum()) == chosen
    assert not random[~seen.valid].any()


def test_of_equal_excess_the_earlier_tokens_are_kept() -> None:
    loss = torch.ones(2, 5)
    kept = Rho1(kept_share=0.6).weights(targets(loss, reference=torch.zeros(2, 5)))
    assert kept.flatten().tolist() == [1] * 6 + [0] * 4


def test_a_constant_added_to_the_reference_changes_nothing() -> None:
    loss = torch.randint(0, 64, (4, 16)).float() / 8
    reference = torch.randint(0, 64, (4, 16)).float() / 8
    for rho in (Rho1(), Rho1(temperature=0.7)):
        one = rho.weights(targets(loss, reference=reference))
        two = rho.weights(targets(loss, reference=reference + 2.0))
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_noise_filter_temperature_and_head_0() -> None:
    loss, reference, _ = planted()
    kept = Rho1(kept_share=0.9, min_ce_diff=1.0).weights(targets(loss, reference=reference))
    assert int(kept.sum()) == 6
    soft = Rho1(temperature=1.0).weights(
        targets(torch.tensor([[3.0, 2.0, 0.0]]), reference=torch.zeros(1, 3))
    )
    ratio = math.exp(1.0)
    assert soft[0].tolist() == pytest.approx([2 * ratio / (1 + ratio), 2 / (1 + ratio), 0.0])
    head_0 = targets(loss, reference=reference, head=0)
    assert Rho1().weights(head_0).min() == 1
    assert int(Rho1(keep_head_0=False).weights(head_0).sum()) == 6


def test_shuffled_weights_are_the_same_ones_elsewhere() -> None:
    loss, reference = torch.rand(2, 6, 20)
    valid = torch.rand(6, 20) < 0.7
    seen = targets(loss, valid, reference=reference)
    inner = Rho1(temperature=0.3)
    weights = inner.weights(seen)
    found = Shuffled(of=inner).weights(seen)
    assert sorted(found[valid].tolist()) == sorted(weights[valid].tolist())
    assert not found[~valid].any()
    assert not torch.equal(found, weights)
    other = Shuffled(of=inner).weights(targets(loss, valid, reference=reference, seed=1))
    assert not torch.equal(found, other)
    assert Shuffled(of=inner).needs_reference
    assert Shuffled(of=Critic()).needs_value


def test_the_reference_is_compared_for_the_same_token() -> None:
    """With the model as its own reference, head 0 has no excess and head k that of its target."""
    model = gpt2()
    data = tokens()
    inputs, labels = data[:, :-1], data[:, 1:]
    reference = copy.deepcopy(model).eval()
    (next_token,) = reference_losses(reference, inputs, labels, None, 1)
    ahead = reference_losses(reference, inputs, labels, None, 4)
    torch.testing.assert_close(ahead[0], next_token)
    assert [one.shape[1] for one in ahead] == [8, 7, 6, 5]
    seen = {}

    class Noted(Rho1):
        def weights(self, targets: object, /) -> Tensor:
            seen[targets.head] = targets.excess  # type: ignore[attr-defined]
            return super().weights(targets)  # type: ignore[arg-type]

    MTP(weighting=Noted(), reference=reference, reference_ahead=True)(model, data)
    assert max(float(excess.abs().max()) for excess in seen.values()) < 1e-5
    MTP(weighting=Noted(), reference=reference)(model, data)
    torch.testing.assert_close(seen[2], ahead[2] - next_token[:, 2:], atol=1e-5, rtol=0)


def test_a_reference_that_does_not_fit_is_refused() -> None:
    model = gpt2()

    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, VOCABULARY)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.tokens(inputs).mean(1, keepdim=True).expand(-1, inputs.shape[1], -1)

    with pytest.raises(UserError, match="another model than the one"):
        MTP(weighting=Rho1(), reference=model)(model, tokens())
    smaller = nn.Sequential(nn.Embedding(7, 7))
    with pytest.raises(UserError, match=r"tokenizer of the model: expected a vocabulary of 23.*7"):
        MTP(weighting=Rho1(), reference=smaller)(model, tokens())
    with pytest.raises(UserError, match=r"aligned in time.*sees later tokens"):
        MTP(weighting=Rho1(), reference=Later())(model, tokens())
    bare = gpt2(heads=1)
    with pytest.raises(UserError, match="needs 4 heads, found 1"):
        MTP(weighting=Rho1(), reference=bare, reference_ahead=True)(model, tokens())
    with pytest.raises(UserError, match="'b' as token 1, found 'c'"):
        check_tokenizers(_tokenizer("ab"), _tokenizer("ac"))
    with pytest.raises(UserError, match="expected digest x, found digest y"):
        MTP(weighting=Rho1(), reference=model, tokenizer="x", reference_tokenizer="y")
    check_tokenizers(_tokenizer("ab"), _tokenizer("ab"))


def _tokenizer(letters: str) -> object:
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    return SimpleNamespace(get_vocab=lambda: vocabulary)


# ── by name, and measured ─────────────────────────────────────────────────────────────────────────


def test_weightings_by_name() -> None:
    assert {type(make(name)).__name__ for name in NAMES} == {
        "Uniform",
        "Critic",
        "Rho1",
        "LowExcess",
        "RandomSelection",
        "Shuffled",
    }
    made = make("shuffled", {"shuffled": {"of": "critic"}, "critic": {"beta": 0.5}})
    assert made == Shuffled(of=Critic(beta=0.5))
    with pytest.raises(UserError, match="did you mean 'rho1'"):
        make("rho")
    with pytest.raises(UserError, match="no hyperparameter 'keep'"):
        make("rho1", {"rho1": {"keep": 0.5}})
    with pytest.raises(UserError, match="kept_share must be"):
        make("rho1", {"rho1": {"kept_share": 0}})


def test_measures_of_weights() -> None:
    measures = WeightMeasures()
    valid = torch.tensor([[True, True, True, False]])
    measures.add_weights(torch.tensor([[5.0, 1.0, 0.1, 0.0]]), valid, (0.1, 5.0))
    found = {name: float(value) for name, value in measures.found().items()}
    total, squares = 6.1, 25 + 1 + 0.01
    shares = [5 / total, 1 / total, 0.1 / total]
    assert found["effective_sample_size"] == pytest.approx(total**2 / squares / 3)
    assert found["clamp_rate"] == pytest.approx(2 / 3)
    assert found["kept_share"] == 1
    entropy = -sum(share * math.log(share) for share in shares) / math.log(3)
    assert found["weight_entropy"] == pytest.approx(entropy, abs=1e-6)


def test_explained_variance_of_values() -> None:
    rewards = torch.tensor([1.0, 0.0, math.nan])
    labelled = torch.ones(3, 2, dtype=torch.bool)
    perfect = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.3, 0.3]])
    half = torch.full((3, 2), 0.5)

    def explained(values: Tensor) -> float:
        return float(value_measures(values, None, rewards, labelled)["value_explained_variance"])

    assert explained(perfect) == pytest.approx(1)
    assert explained(half) == pytest.approx(0)
