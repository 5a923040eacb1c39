"""Parts of a run that are made from a corpus of text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainenv import data
from trainenv.config.schema import RunConfig
from trainenv.data.corpus import Indices
from trainenv.data.stressors import Stressors
from trainenv.models import build
from trainenv.objectives import SpanCorruption
from trainenv.training.micro_batches import placed


def text_parts(config: RunConfig, device: torch.device) -> tuple[int, dict[str, Any]]:
    """Return the vocabulary of a corpus of text, and the parts that are made from it."""
    corpus = data.load(config.corpus)
    batches = data.CorpusBatches(
        corpus=corpus,
        context=build.text_length(config),
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        seed=config.seed,
        stressors=None,
    )
    stressors = Stressors(
        config=config.stressors,
        rare=corpus.rare,
        artefacts=corpus.artefacts,
        vocab_size=corpus.vocab_size,
        seed=config.seed,
        # The stretch of shuffled blocks is to fall inside the run, also where it is shorter
        # than an epoch.
        epoch_steps=min(batches.epoch_steps, config.steps),
    )
    stressed = batches.under(stressors)
    task = _task(config, corpus)
    parts = _held_out(config, corpus, task, device)
    parts["batches"] = stressed
    if task is not None:
        parts["batches"] = data.CorruptedBatches(stressed, task)
        parts["objective"] = task
    parts["stress"] = stressors.lr_factor
    parts["moments_lost"] = stressors.moments_lost
    return corpus.vocab_size, parts


def _task(config: RunConfig, corpus: data.Corpus) -> SpanCorruption | None:
    """Return the objective that makes inputs and targets of text; None if text is trained on."""
    if config.model.architecture == "t5":
        return build.span_corruption(config, corpus.vocab_size)
    return None


def _held_out(
    config: RunConfig, corpus: data.Corpus, task: SpanCorruption | None, device: torch.device
) -> dict[str, Any]:
    """Return the sets that a run is evaluated on: validation, probe and those asked for.

    Only the small ones are kept on the device. The others are moved there in micro-batches.
    """
    context = build.text_length(config)
    asked = config.validation
    micro = config.batch_size // config.accumulation

    def made(name: str, sequences: Indices, size: int) -> tuple[Any, ...]:
        chunks: tuple[Tensor, ...] = torch.from_numpy(sequences).split(size)
        if task is None:
            return chunks
        return data.corrupted_set(task, name, chunks)

    first = made("validation", corpus.validation_sequences(context, asked.sequences), micro)
    probes = config.monitor.probe_sequences
    (probe,) = made("probe", corpus.probe_sequences(context, probes), probes)
    sets: dict[str, Any] = {
        "validation": [placed(chunk, device) for chunk in first],
        "probe": placed(probe, device),
    }
    if asked.full_every:
        whole = corpus.all_validation_sequences(context)
        sets["full_validation"] = made("full_validation", whole, micro)
    if asked.test_sequences:
        test = corpus.test_sequences(context, asked.test_sequences)
        sets["test"] = made("test", test, micro)
    return sets
