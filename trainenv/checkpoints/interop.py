"""Exchange of weights with plain torch and transformers: export from a snapshot, load into a run.

A `.safetensors` file holds weights only. A `.pt` file holds `{"model": state dict, "optimizer":
state dict, "step": n}` as torch writes it. It is a pickle, so it is read with `weights_only=True`,
which runs no code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.tools.atomic_files import replacing
from trainenv.training import optimizers, parameter_names, snapshots
from trainenv.types import Snapshot, UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun

_PICKLED = (".pt", ".pth", ".bin")
# Keys under which this and other programs save the weights and the state of the optimizer.
_MODEL = ("model_in_training", "model", "model_state_dict", "state_dict")
_OPTIMIZER = ("optimizer", "optimizer_state_dict")
# State of the optimizer that has the shape of its parameter.
_LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def export(snapshot: Snapshot, path: str | Path) -> Path:
    """Write the weights of a snapshot as `.safetensors`, or with the optimizer's state as `.pt`.

    The names are those of the module's state dict, so that `model.load_state_dict` accepts them. A
    compiled model, or one wrapped for several devices, is saved under the names of the model
    inside. Tied weights appear under each of their names.

    For an optimizer with `train()` and `eval()`, such as schedule-free ones, the weights are those
    that it evaluates; a `.pt` file also holds those in training as `model_in_training`. The file is
    written whole or not at all.

    Raises:
        UserError: The path has another ending or already exists, the disk refuses, or the snapshot
            is not of a training run.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise UserError(
            "expected a path that ends in .safetensors (weights) or .pt (the optimizer's state "
            f"too), found {path}"
        )
    if path.exists():
        raise UserError(f"{path} already exists; give another path, or delete it first")
    state = snapshots.expand(snapshot)
    if "model" not in state or "optimizer" not in state:
        raise UserError(
            "expected the snapshot of a training run, found one without a model; give a snapshot "
            "that has weights"
        )
    trained = _on_the_host(state["model"])
    weights = trained | _on_the_host(state.get("evaluated", {}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, fsync=True) as temporary:
            if path.suffix == ".pt":
                content = {
                    "model": weights,
                    "optimizer": torch_state_dict(state["optimizer"]),
                    "step": snapshot.step,
                }
                torch.save(
                    content | ({"model_in_training": trained} if "evaluated" in state else {}),
                    temporary,
                )
            else:
                _save_safetensors(weights, temporary)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where a disk is full
        raise UserError(f"{path} could not be written: {error}") from None
    return path


def load_weights(run: TrainingRun, path: str | Path) -> None:
    """Load weights from a file into a run: an export, or a state dict saved by another program.

    Names and shapes must be the model's, with or without the prefix that `torch.compile` adds to
    names; numbers are cast to the model's types. Tied weights may appear under only one of their
    names. The run also takes over the optimizer's state in the file (moments, step counts); if
    there is none, it starts without. Steps, learning rates and all other settings of the run do not
    change.

    Raises:
        UserError: The file does not exist, is damaged, holds code, or does not fit; the run is
            unchanged.
    """
    weights, optimizer = _read(Path(path))
    weights = _fitted(run.model, weights, f"{path} does not fit the model")
    state = None
    if optimizer is not None:
        problem = f"{path} does not fit the optimizer"
        state = _fitted_optimizer(run.optimizer, optimizer, problem)
    # Nothing has been changed so far, and nothing from here on can be refused.
    parameter_names.load_state(run.model, weights)
    if state is None:
        optimizers.reset_moments(run.optimizer)
    else:
        optimizers.load_state(run.optimizer, state)


# ── export ────────────────────────────────────────────────────────────────────────────────────────


def _on_the_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_the_host(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_on_the_host(part) for part in value]
    return value


def torch_state_dict(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Undo what JSON did to an optimizer's state dict: indices are numbers again, betas a tuple."""
    state = _on_the_host(
        {
            key: value
            for key, value in optimizer.items()
            if key not in ("kind", "attributes", "attribute_names")
        }
    )
    state["state"] = {_index(place): entry for place, entry in state["state"].items()}
    for group in state["param_groups"]:
        group |= {
            key: tuple(value)
            for key, value in group.items()
            if isinstance(value, list) and key != "params"
        }
    return dict(state)


def _index(place: str) -> int | str:
    if place.isdigit():
        return int(place)
    return place


def _save_safetensors(weights: Mapping[str, Any], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if other := next(
        (name for name, value in weights.items() if not isinstance(value, Tensor)), None
    ):
        raise UserError(
            f"{other} in the model's state is no tensor, which .safetensors can't hold; "
            "give a path that ends in .pt"
        )
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}  # the format refuses the same memory under two names
    for name, tensor in weights.items():
        if tensor.data_ptr() in seen:
            tensor = tensor.clone()
        separate[name] = tensor
        seen.add(tensor.data_ptr())
    try:
        save_file(separate, path, metadata={"format": "pt"})  # transformers needs this entry
    except SafetensorError as error:
        raise OSError(str(error)) from None


# ── load ──────────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the weights in a file, and the optimizer's state if there is one."""
    if not path.is_file():
        raise UserError(
            f"expected weights at {path}, found no file; give a .safetensors or .pt file"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path), None
    if path.suffix not in _PICKLED:
        raise UserError(
            f"expected weights in a .safetensors or .pt file, found {path}; export a trainenv "
            "checkpoint first"
        )
    content = _load_pickled(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"expected a state dict in {path}, found {type(content).__name__}; "
            "save model.state_dict() in it"
        )
    weights = next((content[key] for key in _MODEL if isinstance(content.get(key), Mapping)), None)
    if weights is None:
        return content, None
    optimizer = next((content[key] for key in _OPTIMIZER if content.get(key) is not None), None)
    if optimizer is not None and not isinstance(optimizer, Mapping):
        raise UserError(
            f"expected the optimizer's state dict in {path}, found {type(optimizer).__name__}; "
            "leave it out"
        )
    return weights, optimizer


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole .safetensors file: {error}; get the file again"
        ) from None


def _load_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle raises any of a dozen types
        raise UserError(
            f"{path} was not read: it is damaged, or holds more than tensors, which could run "
            "code; if you trust it, load it and save its state_dict() as .pt or .safetensors"
        ) from None


def _fitted(model: nn.Module, weights: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """Return the weights under exactly the model's names.

    Raises:
        UserError: A weight is missing, unknown or of another shape. The message gives the name of
            the first one and the number of others.
    """
    ours = parameter_names.state_of(model)
    whole = parameter_names.whole_state_of(model)
    weights = parameter_names.fitted(model, weights)
    # For tied weights: the name in the file of each memory and shape of the model.
    first_name: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in ours.items():
        if isinstance(tensor, Tensor) and name in weights:
            first_name.setdefault((tensor.data_ptr(), tensor.shape), name)
    fitted = dict(weights)
    for name, tensor in ours.items():
        if (
            isinstance(tensor, Tensor)
            and name not in fitted
            and (tensor.data_ptr(), tensor.shape) in first_name
        ):
            fitted[name] = weights[first_name[tensor.data_ptr(), tensor.shape]]
    wrong = [
        name
        for name in (*ours, *(name for name in fitted if name not in ours))
        if not _fits(whole.get(name), fitted.get(name))
    ]
    if wrong:
        first = wrong[0]
        more = ""
        if len(wrong) > 1:
            more = f" (and {len(wrong) - 1} more)"
        raise UserError(
            f"{problem}: {first} should be {_shape(whole.get(first))}, found "
            f"{_shape(fitted.get(first))}{more}; give a file with the names and shapes of the "
            "model's state_dict()"
        )
    return fitted


def _fitted_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], problem: str
) -> dict[str, Any]:
    """Return the state from the file with the settings of the run's optimizer.

    Raises:
        UserError: The state is of another kind of optimizer, or of other parameters.
    """
    remedy = "give a file with only the weights, or build the optimizer as it was when it was saved"
    entries = state.get("state")
    groups = state.get("param_groups")
    live = optimizer.param_groups
    if not (
        isinstance(entries, Mapping)
        and isinstance(groups, list)
        and all(isinstance(g, Mapping) for g in groups)
    ):
        raise UserError(
            f"{problem}: expected its state_dict(), with state and param_groups; {remedy}"
        )
    sizes = [_group_size(group) for group in live]
    found = [_group_size(group) for group in groups]
    if sizes != found:
        raise UserError(f"{problem}: expected parameter groups of {sizes}, found {found}; {remedy}")
    for ours, theirs in zip(live, groups):
        # Another version of torch may have fewer or more settings.
        if not (ours.keys() <= theirs.keys() or theirs.keys() <= ours.keys()):
            raise UserError(
                f"{problem}: it is of another kind, with {_listed(theirs)}, expected "
                f"{_listed(ours)}; {remedy}"
            )
    owners = {
        place: p
        for ours, theirs in zip(live, groups)
        for place, p in zip(theirs["params"], ours["params"])
    }
    for place, entry in entries.items():
        if place not in owners or not isinstance(entry, Mapping):
            raise UserError(
                f"{problem}: it has state for a parameter {place!r} that is in no group; {remedy}"
            )
        for name in _LIKE_PARAMETERS:
            if name in entry and entry[name] is not None and not _fits(owners[place], entry[name]):
                shape = _shape(owners[place])
                raise UserError(
                    f"{problem}: {name} of parameter {place} should be {shape}, found "
                    f"{_shape(entry[name])}; {remedy}"
                )
    settings = optimizer.state_dict()["param_groups"]
    return {
        "state": entries,
        "param_groups": [
            own | {"params": theirs["params"]} for own, theirs in zip(settings, groups)
        ],
    }


def _group_size(group: Mapping[str, Any]) -> int | None:
    params = group.get("params")
    if not isinstance(params, list):
        return None
    return len(params)


def _fits(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return type(ours) is type(theirs) and ours is not None
    holds_numbers = theirs.layout == torch.strided and theirs.device.type != "meta"
    return (
        holds_numbers
        and ours.shape == theirs.shape
        and ours.is_floating_point() == theirs.is_floating_point()
    )


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        odd = {"sparse": value.layout != torch.strided, "without numbers": value.is_meta}
        return " ".join(
            [
                str(value.dtype).removeprefix("torch."),
                str(list(value.shape)),
                *(name for name in odd if odd[name]),
            ]
        )
    if value is None:
        return "absent"
    return type(value).__name__


def _listed(group: Mapping[str, Any]) -> str:
    return ", ".join(sorted(str(key) for key in group if key != "params"))
