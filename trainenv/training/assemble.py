"""Parts of a run from its configuration: corpus, model, optimizer, batches, stressors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trainenv import data
from trainenv.config.schema import RunConfig, StressorConfig
from trainenv.data.stressors import Stressors
from trainenv.data.tasks import EncodedSamples
from trainenv.models import build
from trainenv.objectives import NextLabel
from trainenv.training import configured_optimizer, numerics
from trainenv.training.micro_batches import placed
from trainenv.training.parts import check_model
from trainenv.types import UserError

OWN_PARTS = (
    "model",
    "optimizer",
    "batches",
    "schedule",
    "objective",
    "validation",
    "test",
    "probe",
)


def build_parts(config: RunConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for `TrainingRun`: the user's parts, and configured ones for the rest."""
    if unknown := set(own) - set(OWN_PARTS):
        raise UserError(
            f"parts of a run are {', '.join(OWN_PARTS)}; found {', '.join(sorted(unknown))}"
        )
    if own.get("optimizer") is not None and own.get("model") is None:
        raise UserError(
            "an optimizer of your own holds the parameters of a model: pass that model too"
        )
    own = {name: part for name, part in own.items() if part is not None}
    if "model" in own:
        check_model(own["model"])
    device = numerics.pick(config.device)
    parts: dict[str, Any] = dict(own)
    if "batches" in own:
        if "model" not in own:
            raise UserError(
                "with batches of your own, pass the model too: its vocabulary must fit them"
            )
        parts.setdefault("validation", ())
    else:
        made = _text_parts
        if config.corpus.has_samples:
            made = _sample_parts
        vocab_size, found = made(config, device)
        if "model" in own:
            _check_vocabulary(own["model"], vocab_size)
        else:
            found["model"] = build.build(config, vocab_size, device)
        if "validation" in own:
            found.pop("full_validation", None)
        parts = found | parts
        if config.corpus.has_samples:
            parts.setdefault("objective", NextLabel())
    if "optimizer" not in own:
        parts["optimizer"] = configured_optimizer.make(parts["model"], config.optimizer)
    return parts


def _text_parts(config: RunConfig, device: torch.device) -> tuple[int, dict[str, Any]]:
    """Return the vocabulary of a corpus of text, and the parts that are made from it."""
    corpus = data.load(config.corpus)
    batches = data.CorpusBatches(
        corpus=corpus,
        context=config.model.context,
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
    parts = _held_out(config, corpus, device)
    parts["batches"] = batches.under(stressors)
    parts["stress"] = stressors.lr_factor
    parts["moments_lost"] = stressors.moments_lost
    return corpus.vocab_size, parts


def _sample_parts(config: RunConfig, device: torch.device) -> tuple[int, dict[str, Any]]:
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


def _held_out(config: RunConfig, corpus: data.Corpus, device: torch.device) -> dict[str, Any]:
    """Return the sets that a run is evaluated on: validation, probe and those asked for.

    Only the small ones are kept on the device. The others are moved there in micro-batches.
    """
    context = config.model.context
    asked = config.validation
    micro = config.batch_size // config.accumulation
    first = torch.from_numpy(corpus.validation_sequences(context, asked.sequences))
    probe = torch.from_numpy(corpus.probe_sequences(context, config.monitor.probe_sequences))
    sets: dict[str, Any] = {
        "validation": [chunk.to(device) for chunk in first.split(micro)],
        "probe": probe.to(device),
    }
    if asked.full_every:
        whole = torch.from_numpy(corpus.all_validation_sequences(context))
        sets["full_validation"] = whole.split(micro)
    if asked.test_sequences:
        test = torch.from_numpy(corpus.test_sequences(context, asked.test_sequences))
        sets["test"] = test.split(micro)
    return sets


def _check_vocabulary(model: nn.Module, vocab_size: int) -> None:
    find = getattr(model, "get_input_embeddings", None)
    size = getattr(find() if callable(find) else None, "num_embeddings", vocab_size)
    if size < vocab_size:
        raise UserError(
            "the corpus's tokens do not fit the model: its vocabulary must be at least "
            f"{vocab_size}, found {size}; "
            "give the model more embeddings or the corpus another tokenizer"
        )
