"""Is a snapshot one of this run, or of one built alike, and would it go on to the bit? Asked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.types import Snapshot, UserError


def check_snapshot(snapshot: object) -> None:
    """Refuse what is no snapshot.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(snapshot, Snapshot):
        raise UserError(f"expected a Snapshot, as snapshot() returns it, found {type(snapshot).__name__}")


def check_alike(model: nn.Module, optimizer: Optimizer, seed: int, state: Mapping[str, Any]) -> None:
    """Refuse the state of another model, optimizer or data order.

    Raises:
        UserError: names the first thing that differs.
    """
    if "model" not in state or "optimizer" not in state:
        raise UserError(f"expected the snapshot of a training run, found one that holds {', '.join(sorted(state)) or 'nothing'}")
    ours, theirs = model.state_dict(), state["model"]
    for name in sorted({*ours, *theirs}):
        found, expected = theirs.get(name), ours.get(name)
        if found is None or expected is None or found.shape != expected.shape or found.dtype != expected.dtype:
            raise UserError(
                f"the snapshot is of another model: {name} should be {_kind(expected)}, found {_kind(found)}; "
                "restore it into a run made from the same configuration"
            )
    if state["seed"] != seed:
        raise UserError(
            f"the snapshot is of a run with seed {state['seed']}, this one draws its data with seed {seed}; "
            "restore it into a run with that seed"
        )
    kind = type(optimizer).__name__
    if state["optimizer"].get("kind") != kind:
        raise UserError(f"the snapshot is of another optimizer: expected {kind}, found {state['optimizer'].get('kind')}")
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != (found := [len(group["params"]) for group in state["optimizer"]["param_groups"]]):
        raise UserError(f"the snapshot is of another optimizer: expected parameter groups of {sizes}, found {found}")


def check_exact(snapshot: Snapshot, numerics: Mapping[str, Any]) -> None:
    """Refuse a snapshot that this run would not go on from bit for bit.

    Args:
        snapshot: of this run, or of one built alike.
        numerics: the settings that the bits of this run depend on, as `devices.numerics` gives them.

    Raises:
        UserError: its moments were rounded, or it was taken under other numeric settings; names each, with both values.
    """
    if snapshot.tier != "exact":
        raise UserError(
            "expected an exact snapshot: the moments of this snapshot were rounded to 8 bits when it was saved; "
            "restore it without exact=True, or save with moments='exact'"
        )
    saved = snapshot.state.get("numerics", {})
    names = [name for name in sorted({*saved, *numerics}) if saved.get(name) != numerics.get(name)]
    if names:
        listed = ", ".join(f"{name} {saved.get(name)!r} (here {numerics.get(name)!r})" for name in names)
        raise UserError(
            f"the snapshot was taken under other numeric settings, found {listed}: it would not go on bit for bit; "
            "restore it where they are the same, or without exact=True"
        )


def _kind(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
