"""Parts of a run from its configuration: corpus, model, optimizer, batches, stressors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trainenv.config.schema import RunConfig
from trainenv.distributed.joining import processes_of
from trainenv.models import build
from trainenv.models.spec import spec_of
from trainenv.training import configured_optimizer, numerics
from trainenv.training.objectives import build_objective
from trainenv.training.parts import check_model
from trainenv.training.sample_parts import sample_parts
from trainenv.training.text_parts import text_parts
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
    processes = processes_of(config, device)
    parts: dict[str, Any] = dict(own)
    if "batches" in own:
        if "model" not in own:
            raise UserError(
                "with batches of your own, pass the model too: its vocabulary must fit them"
            )
        parts.setdefault("validation", ())
    else:
        made = text_parts
        if config.corpus.has_samples:
            made = sample_parts
        vocab_size, found = made(config, device)
        if "model" in own:
            _check_vocabulary(config, own["model"], vocab_size)
        else:
            found["model"] = build.build(config, vocab_size, device)
        if "validation" in own:
            found.pop("full_validation", None)
        parts = found | parts
    headless = config.objective.kind == "mtp" and not hasattr(parts["model"], "future_heads")
    if "optimizer" in own and headless:
        raise UserError(
            "with objective.kind mtp, an optimizer of your own must hold the parameters of the "
            "heads, found a model without; call trainenv.models.add_heads(model) before you "
            "make the optimizer"
        )
    objective = own.get("objective")
    if config.objective.kind == "next_token":
        objective = parts.get("objective")
    parts["objective"] = build_objective(config, parts["model"], objective)
    if config.distributed == "fsdp2" and "optimizer" in own:
        raise UserError(
            "with distributed fsdp2, an optimizer is made over the parts of the parameters, found "
            "one of your own over whole ones; set it in the section optimizer"
        )
    processes.prepare(parts["model"], spec_of(parts["model"]).blocks(parts["model"]))
    parts["processes"] = processes
    if "optimizer" not in own:
        parts["optimizer"] = configured_optimizer.make(parts["model"], config.optimizer)
    return parts


def _check_vocabulary(config: RunConfig, model: nn.Module, vocab_size: int) -> None:
    if config.model.architecture == "t5":
        vocab_size = build.span_corruption(config, vocab_size).vocabulary
    find = getattr(model, "get_input_embeddings", None)
    size = getattr(find() if callable(find) else None, "num_embeddings", vocab_size)
    if size < vocab_size:
        raise UserError(
            "the corpus's tokens do not fit the model: its vocabulary must be at least "
            f"{vocab_size}, found {size}; "
            "give the model more embeddings or the corpus another tokenizer"
        )
