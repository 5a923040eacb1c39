"""Objective of a configured run, with the heads that it adds to the model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainenv.config.schema import RunConfig
from trainenv.models import add_heads
from trainenv.models.future_heads import HeadKind
from trainenv.objectives import MTP, weightings
from trainenv.objectives.weightings import Critic, Shuffled, Weighting
from trainenv.types import Objective, UserError

_VALUE_SHARE = 6  # the value head is trained alone for 1/6 of the budget: half an epoch of three


def build_objective(
    config: RunConfig, model: nn.Module, own: Objective | None = None
) -> Objective | None:
    """Return the configured objective, or your own; None for next-token prediction.

    For multi-token prediction the model is given its heads, unless it has some.

    Args:
        config: Configuration of the run.
        model: Model of the run, which may be changed.
        own: Objective in place of the configured one; None without.

    Raises:
        UserError: The model cannot have heads, or the reference does not exist or does not fit.
    """
    asked = config.objective
    if asked.kind == "next_token":
        return own
    weighting = _with_budget(weightings.make(asked.weighting, asked.options), config.steps)
    if isinstance(own, MTP):
        weighting = own.weighting
    reference = None
    if own is None and asked.reference is not None and weighting.needs_reference:
        reference = _reference(asked.reference, model)
    if not hasattr(model, "future_heads"):
        add_heads(model, heads=asked.heads, kind=asked.head, value=weighting.needs_value)
    if own is not None:
        return own
    return MTP(
        weighting=weighting,
        head_weights=asked.head_weights,
        reference=reference,
        reference_ahead=asked.reference_ahead,
        calls_per_step=config.accumulation,
        seed=config.seed,
    )


def _with_budget(weighting: Weighting, steps: int) -> Weighting:
    """Return the weighting with the steps of its value head, if they are left open."""
    if isinstance(weighting, Shuffled) and isinstance(weighting.of, Critic):
        inner = _with_budget(weighting.of, steps)
        return replace(weighting, of=inner)  # type: ignore[arg-type]
    if isinstance(weighting, Critic) and weighting.value_steps is None:
        return replace(weighting, value_steps=max(1, steps // _VALUE_SHARE))
    return weighting


def _reference(path: Path, model: nn.Module) -> nn.Module:
    if path.suffix == ".safetensors":
        return exported_model(path, model)
    if not path.is_dir():
        raise UserError(
            f"expected a reference model at {path}, found no folder and no .safetensors file; "
            "save one with save_pretrained, or with `trainenv checkpoint export`"
        )
    from transformers import AutoModelForCausalLM  # type: ignore[attr-defined]

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the reference model at {path} can't be loaded ({error!s:.200}); save one with "
            "save_pretrained"
        ) from None
    reference: nn.Module = loaded
    return reference


def exported_model(path: Path, model: nn.Module) -> nn.Module:
    """Return a copy of a model with the weights of a `.safetensors` file.

    The copy has future heads only if the file holds some.

    Raises:
        UserError: The file can't be read, or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the reference model at {path} can't be read ({error!s:.200}); export one with "
            "`trainenv checkpoint export`"
        ) from None
    ahead = {name.split(".")[2] for name in weights if name.startswith("future_heads.further.")}
    with torch.no_grad():
        reference = copy.deepcopy(model)
        if hasattr(reference, "future_heads"):
            del reference.future_heads
        if ahead:
            linear = any(name == "future_heads.further.1.weight" for name in weights)
            value = "future_heads.value.weight" in weights
            kind: HeadKind = "linear" if linear else "block"
            add_heads(reference, heads=len(ahead) + 1, kind=kind, value=value)
        try:
            reference.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"the reference model at {path} does not fit the model ({error!s:.200}); give the "
                "weights of a run with the same section `model` and the same tokenizer"
            ) from None
    return reference
