"""A world model as two files in a folder: weights as safetensors, everything else as JSON.

No pickle.

| file | holds |
|---|---|
| `model.safetensors` | the networks, in float16; and some of the branches that they learned from, to rehearse |
| `card.json` | format, digest of both files, sizes of the networks, calibrations, and what it was made of |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv.types import UserError
from trainenv.worldmodel.calibration import Calibrations
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.features import ACTION, STATE
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.networks import Architecture, Networks

FORMAT = "trainenv world model 1"
WEIGHTS = "model.safetensors"
CARD = "card.json"
_REMEDY = "copy both files anew from where they were built, or build them with `trainenv worldmodel build`"
_LARGEST = 16 * 2**20  # bytes of either file that are read
_REHEARSED = "rehearsal"  # prefix of tensors
_TEXTS = ("trunks", "kind", "strata")  # columns of examples that are strings: in the card


def save(model: Model, folder: str | Path, rehearsal: Examples | None = None) -> Path:
    """Write a model into a folder, each file whole or not at all.

    The same model gives the same bytes.

    Args:
        model: with its card and its calibrations.
        folder: made if it does not exist.
        rehearsal: branches to go on learning from beside new ones; what was measured after each
            decision is left out.
    """
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"networks/{name}": _half(value) for name, value in model.networks.state_dict().items()
    }
    texts: dict[str, list[str]] = {}
    if rehearsal is not None:
        compact = _compact(rehearsal)
        texts = {name: [str(value) for value in compact.pop(name)] for name in _TEXTS}
        tensors |= {
            f"{_REHEARSED}/{name}": _half(torch.from_numpy(value))
            for name, value in compact.items()
        }
    content = to_bytes(tensors)
    card = {
        **model.card,
        "format": FORMAT,
        "architecture": asdict(model.networks.shape),
        "state": list(STATE),
        "action": list(ACTION),
        "calibrations": None if model.calibrations is None else model.calibrations.state,
        "rehearsal": texts,
    }
    card = json.loads(_text(_rounded(card)))  # as it will be read: keys are strings
    card["digest"] = _digest(content, card)
    _write(folder / WEIGHTS, content)
    _write(folder / CARD, _text(card))
    return folder


def load(folder: str | Path) -> Model:
    """The model in a folder.

    Raises:
        UserError: a file is missing, damaged, of another version, or not of a world model.
    """
    card, tensors = _read(Path(folder))
    try:
        with torch.device("meta"):  # neither memory nor random numbers before it is known to fit
            networks = Networks(Architecture(**card["architecture"]))
        wanted = networks.state_dict()
        found = {
            name.removeprefix("networks/"): value
            for name, value in tensors.items()
            if name.startswith("networks/")
        }
        if {name: value.shape for name, value in wanted.items()} != {
            name: value.shape for name, value in found.items()
        }:
            raise ValueError("weights of other shapes than the card says")
        if not all(bool(torch.isfinite(value).all()) for value in found.values()):
            raise ValueError("weights that are not finite")
        networks.load_state_dict(
            {name: value.float() for name, value in found.items()}, assign=True
        )
        fitted = card["calibrations"]
        calibrations = None if fitted is None else Calibrations.from_state(fitted)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"expected a world model in {folder}, found a card that does not fit: {error!s:.160}; {_REMEDY}"
        ) from None
    return Model(networks, calibrations, card)


def load_rehearsal(folder: str | Path) -> Examples:
    """The branches that came with a model.

    Raises:
        UserError: as `load`; or none came with it.
    """
    card, tensors = _read(Path(folder))
    prefix = f"{_REHEARSED}/"
    arrays = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    if not arrays:
        raise UserError(
            f"expected branches to rehearse in {folder}, found none; build the model anew, which writes some"
        )
    try:
        return _expanded(arrays, card["rehearsal"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"expected branches to rehearse in {folder}, found others: {error!s:.160}; {_REMEDY}"
        ) from None


@cache
def load_pretrained() -> Model:
    """The model that comes with the package.

    One object however often it is asked for: a model never changes.
    """
    return load(pretrained())


def pretrained() -> Path:
    """Where the package's own model is."""
    return Path(__file__).parent / "pretrained"


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    contents = []
    for name in (CARD, WEIGHTS):
        path = folder / name
        try:
            if path.stat().st_size > _LARGEST:
                raise UserError(
                    f"expected {path} of at most {_LARGEST} bytes, found {path.stat().st_size}; {_REMEDY}"
                )
            contents.append(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"expected a world model in {folder}, found no readable {name} ({error.strerror}); {_REMEDY}"
            ) from None
    try:
        card = json.loads(contents[0])
        version = card["format"]
        digest = card["digest"]
        names = (card["state"], card["action"])
        whole = contents[0] == _text(card) and digest == _digest(contents[1], card)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"expected the card of a world model in {folder / CARD}, found something else; {_REMEDY}"
        ) from None
    if version != FORMAT:
        raise UserError(
            f"expected {FORMAT!r} in {folder / CARD}, found {version!r:.80}; build the model anew with this version"
        )
    if not whole:
        raise UserError(
            f"expected the digest {digest!r:.80} of {WEIGHTS} and {CARD} in {folder}, found another; {_REMEDY}"
        )
    if names != (list(STATE), list(ACTION)):
        raise UserError(
            f"the model in {folder} was made for other features than this version has; build the model anew"
        )
    try:
        return card, from_bytes(contents[1])
    except SafetensorError as error:
        raise UserError(
            f"expected safetensors in {folder / WEIGHTS}, found something else ({error!s:.120}); {_REMEDY}"
        ) from None


def _compact(examples: Examples) -> dict[str, Any]:
    """Columns, of the snapshots and trunks that are used alone, and without what was measured on the way."""
    columns = {field.name: getattr(examples, field.name) for field in fields(Examples)}
    del columns["after"]
    used, columns["snapshot"] = np.unique(examples.snapshot, return_inverse=True)
    for name in ("states", "decision_steps", "strata", "flagged"):
        columns[name] = columns[name][used]
    runs, columns["trunk"] = np.unique(examples.trunk, return_inverse=True)
    columns["trunks"] = [examples.trunks[run] for run in runs]
    return columns


def _expanded(arrays: Mapping[str, Tensor], texts: Mapping[str, list[str]]) -> Examples:
    columns: dict[str, Any] = {
        name: value.numpy().astype(np.float64) if value.is_floating_point() else value.numpy()
        for name, value in arrays.items()
    }
    after = np.full((len(columns["trunk"]), 4, len(STATE)), np.nan)
    strings: dict[str, Any] = {
        "trunks": tuple(texts["trunks"]),
        "kind": np.array(texts["kind"]),
        "strata": np.array(texts["strata"]),
    }
    return Examples(**columns, **strings, after=after)


def _half(value: Any) -> Tensor:
    tensor: Tensor = value.detach()
    if tensor.is_floating_point():
        tensor = tensor.half()
    elif tensor.dtype == torch.int64:
        tensor = tensor.int()
    return tensor.contiguous()


def _digest(content: bytes, card: Mapping[str, Any]) -> str:
    """Of the weights and of everything that a card says beside it."""
    return hashlib.sha256(
        content + _text({name: value for name, value in card.items() if name != "digest"})
    ).hexdigest()


def _text(card: Any) -> bytes:
    return (json.dumps(card, sort_keys=True, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _rounded(value: Any) -> Any:
    """Numbers to 6 digits: a card is read by people, too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
