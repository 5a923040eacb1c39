"""Runs that cost a millisecond a step or two, for building data sets in tests. Importable by worker processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import trainenv
from trainenv.types import Batch, Telemetry
from trainenv.worldmodel.dataset import Design, Run, Size, Trunk, sample

VOCABULARY = 23
SIZE = Size(width=16, layers=1, heads=2, context=8, batch_size=4)
SMALL = Design(
    random=1,
    after_faults=1,
    fired=1,
    rewound=1,
    singles=3,
    sequences=2,
    exhaustive=0.0,
    replicated=0.5,
    replicas=1,
    continued=0.5,
    divergence=2.0,
)
CRASHES, FAILS = 3, 2  # indices of trunks whose runs can't be made


class Bigrams:
    """Batches of a noisy cycle through the vocabulary; a pure function of the index."""

    context = 8
    epoch_steps = 500

    def __init__(self, seed: int, planted: tuple[Mapping[str, Any], ...]) -> None:
        self.seed, self.planted = seed, planted

    def __call__(self, index: int, /) -> Batch:
        generator = torch.Generator().manual_seed(hash((self.seed, index)))
        kinds = tuple(
            p["kind"]
            for p in self.planted
            if p["at"] <= index < p["at"] + p["steps"] and p["kind"] != "lr_spike"
        )
        tokens = torch.randint(VOCABULARY, (4, 9), generator=generator)
        if not kinds:
            tokens = (tokens[:, :1] + torch.arange(9)) % VOCABULARY
        return Batch((tokens,), index, kinds)


def bigrams() -> torch.nn.Module:
    """The least model that learns something."""
    return torch.nn.Sequential(
        torch.nn.Embedding(VOCABULARY, 8), torch.nn.Tanh(), torch.nn.Linear(8, VOCABULARY)
    )


def gpt2() -> torch.nn.Module:
    """The least one that can be folded."""
    from transformers import GPT2Config

    from trainenv.models.gpt2 import GPT2

    shape = {
        "vocab_size": VOCABULARY,
        "n_positions": 8,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "use_cache": False,
    }
    ends = {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    return GPT2(GPT2Config(**shape, **ends, activation_function="gelu_pytorch_tanh"))


def make_run(
    overrides: Mapping[str, Any], model_of: Callable[[], torch.nn.Module] = bigrams
) -> Run:
    """A small model with everything that a trunk asks for but the corpus and the shape."""
    names = (
        "name",
        "seed",
        "steps",
        "threads",
        "block_steps",
        "reset_warmup",
        "schedule",
        "clip",
        "validation",
        "interventions",
    )
    uncertainty = {"min_history": 8, "window": 16, "lenient": 1.0, "threshold": 1.5, "single": 2.0}
    config = trainenv.TrainingConfig(
        **{n: overrides[n] for n in names}, monitor={"uncertainty": uncertainty, "block": 4}
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), **overrides["optimizer"])
    planted = tuple(overrides["stressors"]["planted"])
    clean = Bigrams(config.seed, ())
    spikes = [p for p in planted if p["kind"] == "lr_spike"]

    def stress(step: int) -> float:
        return next(
            (float(p["size"]) for p in spikes if p["at"] <= step < p["at"] + p["steps"]), 1.0
        )

    validation = [clean(10**6 + k).micro[0] for k in range(4)]
    return trainenv.TrainingRun(
        model,
        optimizer,
        Bigrams(config.seed, planted),
        config,
        validation=validation,
        stress=stress,
    )


def make_gpt2(overrides: Mapping[str, Any]) -> Run:
    """As `make_run`, a run that `trainenv.rollouts.folded` takes."""
    return make_run(overrides, gpt2)


class Beside:
    """A fold of runs that are still trained each by itself: to the bit as one after the other."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

    def advance(self, steps: int, among: Sequence[int]) -> list[list[Telemetry]]:
        return [self.runs[number].advance(steps) for number in among]

    def evaluate(self, among: Sequence[int]) -> list[float]:
        return [self.runs[number].evaluate() for number in among]


def make_run_or_not(overrides: Mapping[str, Any]) -> Run:
    """As `make_run`, but for two trunks: for one the process dies, for the other an error is raised."""
    if overrides["name"] == f"t{CRASHES:05d}":
        os._exit(7)
    if overrides["name"] == f"t{FAILS:05d}":
        raise RuntimeError("no such luck")
    return make_run(overrides)


def trunks(count: int, *, seed: int = 0, steps: tuple[int, int] = (40, 60)) -> tuple[Trunk, ...]:
    """Trunks of toy runs."""
    return sample(count, seed=seed, sizes=(SIZE,), steps=steps)


def make_run_slowly(overrides: Mapping[str, Any]) -> Run:
    """As `make_run`, but the second one takes for ever."""
    make_run_slowly.count = getattr(make_run_slowly, "count", 0) + 1  # type: ignore[attr-defined]
    if make_run_slowly.count > 1:  # type: ignore[attr-defined]
        time.sleep(600)
    return make_run(overrides)
