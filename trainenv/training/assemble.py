"""Parts of a run from its configuration: corpus, model, optimizer, batches, stressors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainenv import data
from trainenv.config.schema import RunConfig
from trainenv.data.stressors import Stressors
from trainenv.models import build
from trainenv.training import numerics, optimizers
from trainenv.training.objectives import build_objective
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
        parts["batches"] = batches.under(stressors)
        parts["stress"] = stressors.lr_factor
        parts["moments_lost"] = stressors.moments_lost
        if "model" in own:
            _check_vocabulary(own["model"], corpus.vocab_size)
        else:
            parts["model"] = build.build(config, corpus.vocab_size, device)
        sets = _held_out(config, corpus, device)
        if "validation" in own:
            sets.pop("full_validation", None)
        parts = sets | parts
    headless = config.objective.kind == "mtp" and not hasattr(parts["model"], "future_heads")
    if "optimizer" in own and headless:
        raise UserError(
            "with objective.kind mtp, an optimizer of your own must hold the parameters of the "
            "heads, found a model without; call trainenv.models.add_heads(model) before you "
            "make the optimizer"
        )
    parts["objective"] = build_objective(config, parts["model"], own.get("objective"))
    if "optimizer" not in own:
        parts["optimizer"] = optimizers.adamw(parts["model"], config.optimizer)
    return parts


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
