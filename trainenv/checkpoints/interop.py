"""Come and go: a run's weights as files that plain torch and transformers load, and such files into a run.

`.safetensors` holds weights alone. `.pt` holds `{"model": state dict, "optimizer": state dict,
"step": n}` as torch writes it; it is a pickle, so it is read with `weights_only=True`, which runs
no code.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.tools import portable
from trainenv.training import optimizers, parameter_names, snapshots
from trainenv.types import Snapshot, UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun

_PICKLED = (".pt", ".pth", ".bin")
_MODEL = (
    "model_in_training",
    "model",
    "model_state_dict",
    "state_dict",
)  # where files of others keep the weights
_OPTIMIZER = ("optimizer", "optimizer_state_dict")
_LIKE_PARAMETERS = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
)  # state of the parameter's own shape


def export(snapshot: Snapshot, path: str | Path) -> Path:
    """Write the weights of a training run's snapshot as `.safetensors`, or with the optimizer's state as `.pt`.

    Weights stand under the names of the module's state dict (those of the model inside, where it is
    compiled or wrapped for several devices), tied ones under each of theirs:
    `model.load_state_dict` takes them. Of an optimizer with `train()` and `eval()` they are the
    weights that it evaluates; a `.pt` file holds those that it trains as `model_in_training` too.
    The file is written whole or not at all.

    Raises:
        UserError: the path has another ending or is taken, the disk refuses, or the snapshot is no
            training run's.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise UserError(
            f"expected a path that ends in .safetensors (weights) or .pt (the optimizer's state too), found {path}"
        )
    if path.exists():
        raise UserError(f"{path} is there already; give another path, or delete it first")
    state = snapshots.expand(snapshot)
    if "model" not in state or "optimizer" not in state:
        raise UserError(
            "expected the snapshot of a training run, found one without a model; there are no weights in it"
        )
    trained = _on_the_host(state["model"])
    weights = trained | _on_the_host(state.get("evaluated", {}))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt":
            content = {
                "model": weights,
                "optimizer": _as_torch_has_it(state["optimizer"]),
                "step": snapshot.step,
            }
            torch.save(
                content | ({"model_in_training": trained} if "evaluated" in state else {}),
                temporary,
            )
        else:
            _save_safetensors(weights, temporary)
        portable.sync_file(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where a disk is full
        raise UserError(f"{path} could not be written: {error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def load_weights(run: TrainingRun, path: str | Path) -> None:
    """Put weights from a file into a run: one that `export` wrote, or a state dict that others saved.

    Names and shapes must be the model's, with or without what `torch.compile` adds to names;
    numbers are cast to its types. Tied weights may stand under one of their names. With an
    optimizer's state in the file (moments, step counts) the run takes that over, else it starts
    with none. Steps, learning rates and all other settings stay the run's own.

    Raises:
        UserError: there is no such file, it is damaged, holds code, or does not fit; the run is as
            it was.
    """
    weights, optimizer = _read(Path(path))
    weights = _fitted(run.model, weights, f"{path} does not fit the model")
    state = (
        None
        if optimizer is None
        else _fitted_optimizer(run.optimizer, optimizer, f"{path} does not fit the optimizer")
    )
    # Nothing has been changed so far, and nothing from here on can be refused.
    parameter_names.load_state(run.model, weights)
    if state is None:
        optimizers.reset_moments(run.optimizer)
    else:
        optimizers.load_state(run.optimizer, state)


# ── out ───────────────────────────────────────────────────────────────────────────────────────────


def _on_the_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_the_host(part) for key, part in value.items()}
    return [_on_the_host(part) for part in value] if isinstance(value, list) else value


def _as_torch_has_it(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict as it was before it went through JSON: places are numbers, and betas a tuple."""
    state = _on_the_host(
        {
            key: value
            for key, value in optimizer.items()
            if key not in ("kind", "attributes", "attribute_names")
        }
    )
    state["state"] = {
        int(place) if place.isdigit() else place: entry for place, entry in state["state"].items()
    }
    for group in state["param_groups"]:
        group |= {
            key: tuple(value)
            for key, value in group.items()
            if isinstance(value, list) and key != "params"
        }
    return dict(state)


def _save_safetensors(weights: Mapping[str, Any], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if other := next(
        (name for name, value in weights.items() if not isinstance(value, Tensor)), None
    ):
        raise UserError(
            f"{other} in the model's state is no tensor, which .safetensors can't hold; give a path that ends in .pt"
        )
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}  # the format refuses one memory under two names
    for name, tensor in weights.items():
        separate[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    try:
        save_file(separate, path, metadata={"format": "pt"})  # which transformers asks for
    except SafetensorError as error:
        raise OSError(str(error)) from None


# ── in ────────────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Weights, and the optimizer's state where there is one."""
    if not path.is_file():
        raise UserError(
            f"expected weights at {path}, found no file; give a .safetensors or .pt file"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path), None
    if path.suffix not in _PICKLED:
        raise UserError(
            f"expected weights in a .safetensors or .pt file, found {path}; a checkpoint of ours is exported first"
        )
    content = _load_pickled(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"expected a state dict in {path}, found {type(content).__name__}; save model.state_dict() in it"
        )
    weights = next(
        (content[key] for key in _MODEL if isinstance(content.get(key), Mapping)), content
    )
    optimizer = (
        next((content[key] for key in _OPTIMIZER if content.get(key) is not None), None)
        if weights is not content
        else None
    )
    if optimizer is not None and not isinstance(optimizer, Mapping):
        raise UserError(
            f"expected the optimizer's state dict in {path}, found {type(optimizer).__name__}; leave it out"
        )
    return weights, optimizer


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole .safetensors file: {error}; get it anew") from None


def _load_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever is wrong with a pickle comes up as any of a dozen types
        raise UserError(
            f"{path} was not read: it is damaged, or holds more than tensors, which could run code; "
            "where it is trusted, save the state_dict() of what is in it, as .pt or .safetensors"
        ) from None


def _fitted(model: nn.Module, weights: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """Weights under exactly the model's names.

    Raises:
        UserError: names the first that is missing, unknown or of another shape, and says how many
            more there are.
    """
    ours = parameter_names.state_of(model)
    weights = parameter_names.fitted(model, weights)
    first_name: dict[tuple[int, torch.Size], str] = {}  # of each memory of which the file has one
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
        if not _alike(ours.get(name), fitted.get(name))
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"{problem}: {wrong[0]} should be {_shape(ours.get(wrong[0]))}, found {_shape(fitted.get(wrong[0]))}{more}; "
            "give a file with the names and shapes of the model's state_dict()"
        )
    return fitted


def _fitted_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any], problem: str
) -> dict[str, Any]:
    """The state with the optimizer's own settings: what is in force is the run's business.

    Raises:
        UserError: it is of another kind of optimizer or of other parameters.
    """
    remedy = "give a file with the weights alone, or make the optimizer as it was when it was saved"
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
    sizes, found = (
        [len(g["params"]) if isinstance(g.get("params"), list) else None for g in each]
        for each in (live, groups)
    )
    if sizes != found:
        raise UserError(f"{problem}: expected parameter groups of {sizes}, found {found}; {remedy}")
    for ours, theirs in zip(live, groups):
        if not (
            ours.keys() <= theirs.keys() or theirs.keys() <= ours.keys()
        ):  # another version of torch may know fewer or more
            raise UserError(
                f"{problem}: it is of another kind, with {_listed(theirs)}, expected {_listed(ours)}; {remedy}"
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
            if name in entry and entry[name] is not None and not _alike(owners[place], entry[name]):
                shape = _shape(owners[place])
                raise UserError(
                    f"{problem}: {name} of parameter {place} should be {shape}, found {_shape(entry[name])}; {remedy}"
                )
    settings = optimizer.state_dict()["param_groups"]
    return {
        "state": entries,
        "param_groups": [
            own | {"params": theirs["params"]} for own, theirs in zip(settings, groups)
        ],
    }


def _alike(ours: Any, theirs: Any) -> bool:
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
    return "absent" if value is None else type(value).__name__


def _listed(group: Mapping[str, Any]) -> str:
    return ", ".join(sorted(str(key) for key in group if key != "params"))
