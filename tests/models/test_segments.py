"""Activation checkpointing: the same bits, with the activations of √n blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.saved_bytes import saved_bytes
from trainenv.config.schema import RunConfig
from trainenv.models import build
from trainenv.models.segments import root_segment

CPU = torch.device("cpu")
MODES = (False, True, "sqrt")
OLD_NAME = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
)


def made(mode: bool | str, layers: int, **overrides: Any) -> Any:
    settings = {"model.width": 32, "model.context": 16, "model.layers": layers}
    more = {key.replace("__", "."): value for key, value in overrides.items()}
    config = RunConfig.load("tiny", {**settings, "model.activation_checkpointing": mode, **more})
    return build.build(config, 64, CPU)


def batch(length: int = 16) -> Tensor:
    return torch.randint(0, 64, (4, length), generator=torch.Generator().manual_seed(0))


@OLD_NAME
@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_the_same_bits_with_dropout(architecture: str) -> None:
    results = []
    for mode in MODES:
        model = made(mode, 5, model__architecture=architecture, model__dropout=0.2)
        torch.manual_seed(4)
        inputs = [batch(), batch(5)][: 1 + (architecture == "t5")]
        logits = model(*inputs).logits
        logits.square().mean().backward()
        gradients = [p.grad for p in model.parameters()]
        results.append([logits, *gradients, torch.get_rng_state()])
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize(("layers", "segment"), [(1, 1), (2, 1), (3, 2), (9, 3), (12, 3), (24, 5)])
def test_a_segment_has_the_root_of_the_blocks(layers: int, segment: int) -> None:
    assert root_segment(layers) == segment


def passes(model: Any) -> list[int]:
    """Count the runs of each block in a forward and a backward pass."""
    counts = [0] * len(model.transformer.h)
    for place, block in enumerate(model.transformer.h):

        def count(*_: Any, place: int = place) -> None:
            counts[place] += 1

        block.attn.register_forward_pre_hook(count)
    model(batch()).logits.square().mean().backward()
    return counts


@OLD_NAME
def test_each_block_runs_twice_in_training_and_once_otherwise() -> None:
    assert passes(made(False, 6)) == [1] * 6
    assert passes(made(True, 6)) == [2] * 6
    assert passes(made("sqrt", 6)) == [2] * 6
    assert passes(made("sqrt", 6).eval()) == [1] * 6


@OLD_NAME
def test_saved_bytes() -> None:
    """Compare what n blocks keep: all activations, n inputs of blocks, or √n inputs of segments."""
    found = {mode: {n: saved_bytes(made(mode, n), batch()) for n in (4, 16)} for mode in MODES}
    hidden = 4 * 16 * 32 * 4  # bytes of the states between two blocks
    assert found[True][16] - found[True][4] == 12 * hidden
    # 4 segments of 4 blocks, in place of 2 of 2
    assert found["sqrt"][16] - found["sqrt"][4] == 2 * hidden
    assert found[False][16] - found[False][4] > 12 * 10 * hidden
