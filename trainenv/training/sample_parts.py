"""Parts of a run that are made from samples of tasks with verifiable solutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trainenv import data
from trainenv.config.schema import RunConfig, StressorConfig
from trainenv.data.stressors import Stressors
from trainenv.data.tasks import EncodedSamples
from trainenv.objectives import NextLabel
from trainenv.training.micro_batches import placed
from trainenv.types import UserError


def sample_parts(config: RunConfig, device: torch.device) -> tuple[int, dict[str, Any]]:
    """Return the vocabulary of a corpus of samples, and the parts that are made from it."""
    _check_stressors(config.stressors)
    corpus = data.load_samples(config.corpus, config.tasks)
    batches = data.SampleBatches(
        samples=corpus.train,
        context=config.model.context,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        seed=config.seed,
        kind=config.tasks.samples,
    )
    empty = np.zeros(0, np.int64)
    stressors = Stressors(
        config=config.stressors,
        rare=empty,
        artefacts=empty,
        vocab_size=corpus.vocab_size,
        seed=config.seed,
        epoch_steps=min(batches.epoch_steps, config.steps),
    )
    asked = config.validation
    parts: dict[str, Any] = {
        "batches": batches,
        "objective": NextLabel(),
        "validation": _micro_batches(corpus.validation, "validation", config, asked.sequences),
        "stress": stressors.lr_factor,
        "moments_lost": stressors.moments_lost,
    }
    size = config.monitor.probe_sequences
    (probe,) = _micro_batches(corpus.probe, "probe", config, size, whole=True)
    parts["probe"] = probe
    if asked.full_every:
        parts["full_validation"] = _micro_batches(
            corpus.validation, "validation", config, len(corpus.validation)
        )
    if asked.test_sequences:
        parts["test"] = _micro_batches(corpus.test, "test", config, asked.test_sequences)
    for name in ("validation", "probe"):
        parts[name] = placed(parts[name], device)
    return corpus.vocab_size, parts


def _micro_batches(
    samples: EncodedSamples, part: str, config: RunConfig, count: int, *, whole: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Return up to `count` samples that fit, in micro-batches of the run's size, or in one."""
    context = config.model.context
    fitting = samples.fitting(context)[:count]
    if not len(fitting):
        raise UserError(
            f"expected a {part} sample of at most {context + 1} tokens, found none in "
            f"{len(samples)}; give a larger model.context or easier tasks"
        )
    size = config.batch_size // config.accumulation
    if whole:
        size = len(fitting)
    starts = range(0, len(fitting), size)
    return [samples.micro_batch(fitting[start : start + size], context) for start in starts]


def _check_stressors(stressors: StressorConfig) -> None:
    """Refuse stressors that would change the tokens of samples, and so their labels."""
    rates = ("rare_tokens", "long_sequence", "artefacts", "block_shuffle")
    found = [name for name in rates if getattr(stressors, name) > 0]
    harmless = ("lr_spike", "lost_moments")
    found += [plant.kind for plant in stressors.planted if plant.kind not in harmless]
    if found:
        raise UserError(
            "samples of tasks can have no stressors that change tokens, found "
            f"{', '.join(dict.fromkeys(found))}; leave them out, or use a corpus of text"
        )
