"""Checks that a snapshot fits a run and resumes bit-exactly, made before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.training import parameter_names
from trainenv.training.optimizers import MOMENTS, kind_of
from trainenv.types import Snapshot, UserError


def check_snapshot(snapshot: object) -> None:
    """Check that a value is a snapshot.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(snapshot, Snapshot):
        raise UserError(
            f"expected a Snapshot, as snapshot() returns it, found {type(snapshot).__name__}"
        )


def check_alike(
    model: nn.Module, optimizer: Optimizer, seed: int, state: Mapping[str, Any]
) -> None:
    """Check that a state is of the same model, optimizer and data order as a run's.

    Raises:
        UserError: Names the first thing that differs.
    """
    if "model" not in state or "optimizer" not in state:
        raise UserError(
            "expected the snapshot of a training run, found one that holds "
            f"{', '.join(sorted(state)) or 'nothing'}"
        )
    ours = parameter_names.state_of(model)
    theirs = parameter_names.fitted(model, state["model"])
    for name in sorted({*ours, *theirs}):
        found = theirs.get(name)
        expected = ours.get(name)
        if name.rpartition(".")[2] == "_extra_state" and name in ours and name in theirs:
            continue  # whatever the module makes of it
        if (
            not isinstance(found, Tensor)
            or expected is None
            or found.shape != expected.shape
            or found.dtype != expected.dtype
        ):
            raise UserError(
                f"the snapshot is of another model: {name} should be {_kind(expected)}, found "
                f"{_kind(found)}; "
                "restore it into a run made from the same configuration"
            )
    for name, value in state.get("buffers", {}).items():
        if value is not None and not isinstance(value, Tensor):
            raise UserError(
                f"the snapshot is of another model: buffer {name} should be a tensor, found "
                f"{_kind(value)}"
            )
    if state["seed"] != seed:
        raise UserError(
            f"the snapshot is of a run with seed {state['seed']}, this one draws its data with "
            f"seed {seed}; "
            "restore it into a run with that seed"
        )
    kind = kind_of(optimizer)
    if state["optimizer"].get("kind") != kind:
        raise UserError(
            f"the snapshot is of another optimizer: expected {kind}, found "
            f"{state['optimizer'].get('kind')}"
        )
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != (found := [len(group["params"]) for group in state["optimizer"]["param_groups"]]):
        raise UserError(
            f"the snapshot is of another optimizer: expected parameter groups of {sizes}, found "
            f"{found}"
        )
    _check_moments(optimizer, state["optimizer"])


def _check_moments(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Check that moments have the shape of their parameters.

    The optimizer's kernels read them without looking and would read, and write, past their ends.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    places = [place for group in state["param_groups"] for place in group["params"]]
    for place, parameter in zip(places, parameters):
        live = optimizer.state.get(parameter, {})
        for name, found in state["state"].get(str(place), {}).items():
            if name in MOMENTS:
                expected = parameter
                unused = name == "momentum_buffer" and found is None
                fits = unused or (isinstance(found, Tensor) and found.shape == parameter.shape)
            elif name == "step":
                expected = torch.zeros(())
                fits = not isinstance(found, Tensor) or found.numel() == 1
            else:
                expected = live.get(name)
                fits = not isinstance(expected, Tensor) or (
                    isinstance(found, Tensor) and found.shape == expected.shape
                )
            if not fits:
                raise UserError(
                    f"the snapshot is of another optimizer: {name} of parameter {place} should be "
                    f"{_kind(expected)}, "
                    f"found {_kind(found)}; restore it into a run made from the same configuration"
                )


def check_exact(snapshot: Snapshot, numerics: Mapping[str, Any]) -> None:
    """Check that a run would continue from a snapshot bit for bit.

    Args:
        snapshot: Snapshot of this run, or of one built alike.
        numerics: Settings that the bits of this run depend on, as `numerics.numerics` returns them.

    Raises:
        UserError: Moments were rounded, or the snapshot was taken under other numeric settings;
            names each, with both values.
    """
    if snapshot.tier != "exact":
        raise UserError(
            "expected an exact snapshot: the moments of this snapshot were rounded to 8 bits when "
            "it was saved; "
            "restore it without exact=True, or save with moments='exact'"
        )
    saved = snapshot.state.get("numerics", {})
    parameter_names = [
        name for name in sorted({*saved, *numerics}) if saved.get(name) != numerics.get(name)
    ]
    if parameter_names:
        listed = ", ".join(
            f"{name} {saved.get(name)!r} (here {numerics.get(name)!r})" for name in parameter_names
        )
        raise UserError(
            f"the snapshot was taken under other numeric settings, found {listed}: it would not go "
            "on bit for bit; "
            "restore it where they are the same, or without exact=True"
        )


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None:
        return "absent"
    return type(value).__name__
