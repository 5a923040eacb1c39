"""An architecture of one's own, known by its spec alone: FLOPs, probe and weight decay fit it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from trainenv import TrainingRun
from trainenv.models.spec import ModelSpec, Shape, spec_of
from trainenv.training import optimizers

WIDTH = 16
LAYERS = 2
VOCABULARY = 32


class Recurrent(nn.Module):
    """One GRU layer with a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, T, W] → [B, T, W]."""
        return hidden + self.gru(hidden)[0]


class GRUSpec(ModelSpec):
    """The clock is looked up like a position embedding; the layers lie in a dict, not in a list."""

    position_names = ("clock",)

    def shape(self, model: nn.Module) -> Shape:
        return Shape(width=WIDTH, vocabulary=VOCABULARY)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.get_submodule("layers").children())


class GRUModel(nn.Module):
    """A causal language model without attention."""

    spec = GRUSpec()

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.clock = nn.Parameter(torch.zeros(64, WIDTH))
        self.layers = nn.ModuleDict({str(layer): Recurrent() for layer in range(LAYERS)})
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        """Tokens [B, T] → logits [B, T, V]."""
        hidden = self.tokens(tokens) + self.clock[: tokens.shape[1]]
        for layer in self.layers.values():
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.head(hidden))


def batches(index: int) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(0, VOCABULARY, (4, 13), generator=generator)


@pytest.fixture
def run() -> TrainingRun:
    torch.manual_seed(0)
    model = GRUModel()
    config = {
        "steps": 20,
        "threads": 1,
        "monitor": {"probe_every": 2, "block": 4},
        "schedule": {"warmup": 2},
    }
    optimizer = optimizers.adamw(
        model, SimpleNamespace(weight_decay=0.1, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    )  # type: ignore[arg-type]
    return TrainingRun(
        model, optimizer, batches, config, validation=[batches(10**6)], probe=batches(10**6 + 1)
    )


def test_a_model_carries_its_spec() -> None:
    assert isinstance(spec_of(GRUModel()), GRUSpec)
    assert type(spec_of(nn.Linear(2, 2))) is ModelSpec


def test_flops_count_what_is_multiplied(run: TrainingRun) -> None:
    """Six FLOPs a parameter and token; nothing for the clock, no attention term."""
    multiplied = sum(p.numel() for name, p in run.model.named_parameters() if name != "clock")
    run.advance(4)
    assert (
        run.ledger["main"] == 4 * 4 * 12 * 6.0 * multiplied
    )  # of 13 tokens, the first is only input


def test_the_clock_and_biases_do_not_decay(run: TrainingRun) -> None:
    names = {id(p): name for name, p in run.model.named_parameters()}
    decayed, kept = (
        {names[id(p)] for p in group["params"]} for group in run.optimizer.param_groups
    )
    assert "clock" in kept
    assert {name for name in kept if "bias" in name} == {
        name for name in names.values() if "bias" in name
    }
    assert {"tokens.weight", "head.weight", "layers.0.gru.weight_hh_l0"} <= decayed


def test_the_probe_sees_its_layers_and_no_attention(run: TrainingRun) -> None:
    telemetry = run.advance(4)[2]
    assert math.isfinite(telemetry.probe_loss)
    assert 0 < telemetry.activation_entropy <= 1
    assert math.isfinite(telemetry.embedding_rms)
    assert telemetry.shortcut_ratio > 0
    assert math.isnan(telemetry.attention_entropy)
    state = run.snapshot().state["statistics"]
    assert len(state["activation_mean"]) == LAYERS


def test_its_vocabulary_is_known(run: TrainingRun) -> None:
    assert run.vocabulary == VOCABULARY
    assert run.uniform_loss == math.log(VOCABULARY)
