"""The probe: the numbers of an eager computation, and a model that never notices it was looked at."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainenv.config.schema import RunConfig
from trainenv.models import build
from trainenv.monitor.probe import PROBE_FIELDS, Probe, activation_entropy, attention_entropy
from trainenv.objectives import NextToken

CPU = torch.device("cpu")
Parts = tuple[Any, Tensor, Callable[[Any], Tensor]]


def gpt2(**overrides: Any) -> Parts:
    config = RunConfig.load(
        "tiny",
        {"model.width": 32, "model.context": 24, "model.layers": 3, "model.heads": 4, **overrides},
    )
    model = build.build(config, 100, CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # sharper attention than at the start
    tokens = torch.randint(0, 100, (3, 25), generator=torch.Generator().manual_seed(1))
    return model, tokens, lambda micro: NextToken()(model, micro)


@pytest.fixture
def parts() -> Parts:
    return gpt2()


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def test_against_eager_attention(parts: Parts) -> None:
    model, tokens, loss = parts
    measured = Probe(model, tokens, loss).measure()
    model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(tokens[:, :-1], output_attentions=True, output_hidden_states=True)
    attention = torch.stack(output.attentions).double()  # (L, B, H, T, T)
    most = torch.arange(1, 25).double().log()
    expected = (entropy(attention)[..., 1:] / most[1:]).mean()
    assert measured["attention_entropy"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert 0 < expected < 0.99


def test_against_the_hidden_states(parts: Parts) -> None:
    model, tokens, loss = parts
    measured = Probe(model, tokens, loss).measure()
    hidden: list[tuple[Tensor, Tensor]] = []
    for block in model.transformer.h:
        block.register_forward_hook(
            lambda _, i, o: hidden.append(
                (i[0].double(), (o[0] if isinstance(o, tuple) else o).double())
            )
        )
    model.eval()
    with torch.no_grad():
        model(tokens[:, :-1])
    assert len(hidden) == 3
    ratio = np.mean([(before.norm() / (after - before).norm()).item() for before, after in hidden])
    energies = [after.square() / after.square().sum(-1, keepdim=True) for _, after in hidden]
    spread = np.mean([(entropy(p).mean() / math.log(32)).item() for p in energies])
    assert measured["shortcut_ratio"].item() == pytest.approx(ratio, rel=1e-4)
    assert measured["activation_entropy"].item() == pytest.approx(spread, rel=1e-4)
    rms = model.transformer.wte.weight[tokens[:, :-1]].double().square().mean().sqrt()
    assert measured["embedding_rms"].item() == pytest.approx(rms.item(), rel=1e-5)


def test_embedding_rms_sees_the_scaled_embedding() -> None:
    model, tokens, loss = gpt2(**{"model.init": "stable"})
    expected = (model.transformer.wte.weight[tokens[:, :-1]] * math.sqrt(32)).square().mean().sqrt()
    assert Probe(model, tokens, loss).measure()["embedding_rms"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_the_loss_is_the_objective_s_without_dropout() -> None:
    model, tokens, loss = gpt2(**{"model.dropout": 0.5})
    measured = Probe(model, tokens, loss).measure()
    assert tuple(measured) == PROBE_FIELDS
    assert all(
        value.shape == () and value.dtype == torch.float32 and not value.requires_grad
        for value in measured.values()
    )
    assert torch.equal(measured["probe_loss"], loss(tokens)) is False
    model.eval()
    with torch.no_grad():
        assert torch.equal(measured["probe_loss"], loss(tokens))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_never_notices(training: bool) -> None:
    model, tokens, loss = gpt2(**{"model.dropout": 0.5})
    model.train(training)
    loss(tokens).backward()
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.get_rng_state(), random.getstate()
    first, second = Probe(model, tokens, loss).measure(), Probe(model, tokens, loss).measure()
    assert first == second
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients))
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_nor_when_the_loss_fails(parts: Parts) -> None:
    model, tokens, _ = parts

    def fail(micro: Tensor) -> Tensor:
        model(micro[:, :-1])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Probe(model, tokens, fail).measure()
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_of_others_stay(parts: Parts) -> None:
    model, tokens, loss = parts
    seen: list[int] = []
    model.transformer.h[0].register_forward_hook(lambda *_: seen.append(1))
    Probe(model, tokens, loss).measure()
    assert seen == [1]
    model(tokens[:, :-1])
    assert seen == [1, 1]


def test_other_models_have_no_attention_entropy() -> None:
    class Residual(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.layers = nn.ModuleList([Residual(8, 8) for _ in range(3)])
            self.heads = nn.ModuleList([nn.Linear(8, 10)])

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for layer in self.layers:
                x = layer(x)
            return self.heads[0](x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, tokens = Model(), torch.randint(0, 10, (2, 5))
    measured = Probe(model, tokens, lambda micro: NextToken()(model, micro)).measure()
    missing = {name for name, value in measured.items() if math.isnan(value.item())}
    assert missing == {"attention_entropy"}


def test_of_a_bare_model_there_is_only_the_loss() -> None:
    model = nn.Linear(4, 4)
    measured = Probe(model, torch.ones(2, 4), lambda x: model(x).square().mean()).measure()
    assert {name for name, value in measured.items() if not math.isnan(value.item())} == {
        "probe_loss"
    }


def test_entropies_are_shares_of_their_maximum() -> None:
    uniform = attention_entropy(torch.zeros(2, 3, 9, 4), torch.randn(2, 3, 9, 4))
    assert uniform.item() == pytest.approx(1.0, abs=1e-6)
    sharp = 1e4 * torch.eye(9)[None, None]
    assert attention_entropy(sharp, sharp).item() == pytest.approx(0.0, abs=1e-6)
    assert activation_entropy(torch.ones(2, 3, 16)).item() == pytest.approx(1.0, abs=1e-6)
    assert activation_entropy(torch.eye(16)[None]).item() == pytest.approx(0.0, abs=1e-6)
    assert activation_entropy(torch.zeros(1, 2, 16)).item() == 0.0
    random_states = torch.randn(4, 5, 16)
    assert activation_entropy(3 * random_states).item() == pytest.approx(
        activation_entropy(random_states).item(), rel=1e-4
    )
