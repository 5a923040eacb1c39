"""The models: as large as promised, the same for the same seed, and refused before anything is allocated."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import GPT2LMHeadModel

from trainenv.config.schema import RunConfig
from trainenv.models import build
from trainenv.types import UserError

CPU = torch.device("cpu")
OLD_NAME = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
)


def small(**overrides: Any) -> RunConfig:
    return RunConfig.load(
        "tiny",
        {
            "model.width": 32,
            "model.context": 16,
            **{k.replace("__", "."): v for k, v in overrides.items()},
        },
    )


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@OLD_NAME
@pytest.mark.parametrize(
    ("overrides", "vocabulary"),
    [
        ({}, 256),
        ({"model.init": "stable"}, 257),
        ({"model.width": 48, "model.heads": 3, "model.layers": 5, "model.positions": 100}, 300),
        ({"stressors.long_sequence": 0.1}, 256),
        ({"model.activation_checkpointing": True, "model.dropout": 0.1}, 256),
    ],
)
def test_parameter_count_is_the_real_one(overrides: dict[str, Any], vocabulary: int) -> None:
    config = RunConfig.load("tiny", overrides)
    model = build.build(config, vocabulary, CPU)
    assert build.parameter_count(config, vocabulary) == count(model)


@pytest.mark.parametrize(
    ("name", "total"), [("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080)]
)
def test_known_totals(name: str, total: int) -> None:
    assert build.parameter_count(RunConfig.load(name), 50257) == total


def test_the_model_is_what_the_configuration_says() -> None:
    config = small(model__dropout=0.25)
    model = build.build(config, 300, CPU)
    assert model.training
    assert {p.device for p in model.parameters()} == {CPU}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model.config.n_embd, model.config.n_layer, model.config.n_head) == (32, 2, 2)
    assert (model.config.vocab_size, model.config.n_positions) == (300, 16)
    assert (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop) == (
        0.25,
    ) * 3
    assert model.config.bos_token_id < 300
    assert model.config.eos_token_id < 300
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_activation_is_gpt2_s_own() -> None:
    model = build.build(small(), 256, CPU)
    x = torch.linspace(-6, 6, 1001)
    expected = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(model.transformer.h[0].mlp.act(x), expected)


@pytest.mark.parametrize("init", ["gpt2", "stable"])
def test_a_pure_function_of_the_seed(init: str) -> None:
    built = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        built.append(build.build(small(model__init=init, seed=5), 256, CPU).state_dict())
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])
    other = build.build(small(model__init=init, seed=6), 256, CPU).state_dict()
    assert not torch.equal(other["transformer.wte.weight"], built[0]["transformer.wte.weight"])


def test_building_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build.build(small(model__init="stable"), 256, CPU)
    assert torch.equal(torch.rand(4), expected)


def test_stable_initialisation() -> None:
    width, layers = 128, 3
    config = RunConfig.load(
        "tiny", {"model.width": width, "model.layers": layers, "model.init": "stable"}
    )
    model = build.build(config, 1000, CPU)
    std = math.sqrt(2 / (5 * width))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = std / math.sqrt(2 * layers) if "c_proj" in name else std
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name
        elif "ln" in name and name.endswith("weight"):
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            assert not parameter.any(), name
    tokens = torch.arange(1000)[None]
    embedded = model.transformer.wte(tokens)
    torch.testing.assert_close(embedded[0], model.transformer.wte.weight * math.sqrt(width))
    assert embedded.std().item() == pytest.approx(math.sqrt(2 / 5), rel=0.02)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_stable_and_plain_start_near_a_uniform_guess() -> None:
    tokens = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))
    for init in ("gpt2", "stable"):
        logits = build.build(small(model__init=init), 256, CPU).eval()(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
        assert loss.item() == pytest.approx(math.log(256), abs=0.5)


@OLD_NAME
def test_activation_checkpointing_computes_twice_and_gives_the_same_gradients() -> None:
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        model = build.build(small(model__activation_checkpointing=checkpointing), 256, CPU)
        passes: list[int] = []
        model.transformer.h[0].attn.register_forward_pre_hook(
            lambda *_, passes=passes: passes.append(1)
        )
        model(tokens).logits.square().mean().backward()
        assert len(passes) == 1 + checkpointing
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("init", ["gpt2", "stable"])
@pytest.mark.parametrize("length", [1, 2, 16])
def test_the_short_way_gives_the_same_bits(init: str, length: int) -> None:
    tokens = torch.randint(0, 256, (3, length), generator=torch.Generator().manual_seed(0))
    results = []
    for short in (True, False):
        model = build.build(small(model__init=init, model__dropout=0.2), 256, CPU)
        torch.manual_seed(4)
        logits = (model(tokens) if short else GPT2LMHeadModel.forward(model, tokens)).logits
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_it_generates_as_transformers_does() -> None:
    model = build.build(small(), 256, CPU).eval()
    start = torch.tensor([[1, 2, 3]])
    whole = model.generate(
        start, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    expected = start
    for _ in range(6):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(whole, expected)


def test_no_token_sees_those_after_it() -> None:
    model = build.build(small(), 256, CPU).eval()
    tokens = torch.randint(0, 256, (1, 16), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 9:] = 0
    one, two = model(tokens).logits, model(other).logits
    torch.testing.assert_close(one[:, :9], two[:, :9])
    assert not torch.allclose(one[:, 9:], two[:, 9:])


# ── positions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, 64),
        ({"model.positions": 100}, 100),
        ({"stressors.long_sequence": 0.01}, 256),
        ({"stressors.long_sequence": 0.01, "stressors.long_factor": 2}, 128),
        ({"stressors.planted": [{"at": 1, "kind": "long_sequence"}]}, 256),
        ({"stressors.planted": [{"at": 1, "kind": "artefacts"}]}, 64),
        ({"stressors.long_sequence": 0.01, "model.positions": 300}, 300),
    ],
)
def test_positions(overrides: dict[str, Any], expected: int) -> None:
    config = RunConfig.load("tiny", overrides)
    assert build.positions(config) == expected
    assert build.build(config, 256, CPU).transformer.wpe.num_embeddings == expected


def test_positions_too_few_for_long_sequences() -> None:
    config = RunConfig.load("tiny", {"stressors.long_sequence": 0.01, "model.positions": 255})
    with pytest.raises(
        UserError,
        match=r"model\.positions must be at least 256 .*found 255; raise it or leave it out",
    ):
        build.build(config, 256, CPU)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_cannot_fit_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = build.memory_needed(RunConfig.load("tiny"), 256)
    for free in (needed, needed - 1):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free)
        )
        if free == needed:
            build.check_memory(RunConfig.load("tiny"), 256, CPU)
        else:
            with pytest.raises(
                UserError,
                match=r"tiny needs at least .* GiB of memory on cpu, found .* GiB free; take a smaller preset",
            ):
                build.build(RunConfig.load("tiny"), 256, CPU)


def test_refusing_a_large_run_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    with pytest.raises(
        UserError,
        match=r"large needs at least \d+\.\d GiB .*found 1\.0 GiB.*accumulation.*activation_checkpointing: true",
    ):
        build.build(RunConfig.load("large"), 50257, CPU)


def test_the_remedies_help() -> None:
    whole = build.memory_needed(RunConfig.load("small"), 50257)
    assert build.memory_needed(RunConfig.load("tiny"), 50257) < whole
    assert build.memory_needed(RunConfig.load("small", {"accumulation": 8}), 50257) < whole
    assert (
        build.memory_needed(
            RunConfig.load("small", {"model.activation_checkpointing": True}), 50257
        )
        < whole
    )
    assert build.memory_needed(RunConfig.load("small", {"precision": "fp32"}), 50257) > whole
    assert whole > 16 * build.parameter_count(RunConfig.load("small"), 50257)
