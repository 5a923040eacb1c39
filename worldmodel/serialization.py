"""Files of a world model: weights as safetensors and the rest as JSON, without pickle.

| file | content |
|---|---|
| `model.safetensors` | networks, in float16; some of the training branches, for rehearsal |
| `card.json` | format, digest of both files, sizes of the networks, calibrations, origin, quality |
| `paths.safetensors`, `paths.json` | model of whole paths; see `paths.serialization` |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv.tools.atomic_files import write_file
from trainenv.types import DECISIONS, UserError
from trainenv.worldmodel.calibration import Calibrations
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.features import ACTION, STATE
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.networks import Architecture, Networks
from trainenv.worldmodel.paths.serialization import load_paths, save_paths

FORMAT = "trainenv world model 1"
WEIGHTS = "model.safetensors"
CARD = "card.json"
_REMEDY = (
    "copy both files anew from where they were built, "
    "or build them with `trainenv worldmodel build`"
)
_LARGEST = 16 * 2**20  # a file with more bytes is refused
_NETWORKS = "networks/"  # prefix of tensors
_REHEARSED = "rehearsal/"  # prefix of tensors
_TEXTS = ("trunks", "kind", "strata")  # columns of examples that are strings, kept in the card


def save(model: Model, folder: str | Path, rehearsal: Examples | None = None) -> Path:
    """Write a model into a folder, each file whole or not at all.

    The same model gives the same bytes.

    Args:
        model: Model with its card and its calibrations.
        folder: Folder to write into; it is created if it does not exist.
        rehearsal: Branches to rehearse during online learning; their features after each decision
            are left out.
    """
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.networks.state_dict()
    tensors = {f"{_NETWORKS}{name}": _half(value) for name, value in weights.items()}
    texts: dict[str, list[str]] = {}
    if rehearsal is not None:
        compact = _compact(rehearsal)
        texts = {name: [str(value) for value in compact.pop(name)] for name in _TEXTS}
        tensors |= {
            f"{_REHEARSED}{name}": _half(torch.from_numpy(value)) for name, value in compact.items()
        }
    content = to_bytes(tensors)
    calibrations: dict[str, Any] | None = None
    if model.calibrations is not None:
        calibrations = model.calibrations.state
    card = {
        **model.card,
        "format": FORMAT,
        "architecture": asdict(model.networks.shape),
        "state": list(STATE),
        "action": list(ACTION),
        "calibrations": calibrations,
        "rehearsal": texts,
    }
    card = json.loads(_text(_rounded(card)))  # keys become strings, as they will be read
    card["digest"] = _digest(content, card)
    write_file(folder / WEIGHTS, content, fsync=True)
    write_file(folder / CARD, _text(card), fsync=True)
    if model.paths is not None:
        save_paths(model.paths, folder)
    return folder


def load(folder: str | Path) -> Model:
    """Read the model in a folder.

    Raises:
        UserError: a file is missing, damaged, of another version, or not of a world model.
    """
    card, tensors = _read(Path(folder))
    try:
        # On the device "meta" networks use neither memory nor random numbers.
        with torch.device("meta"):
            networks = Networks(Architecture(**card["architecture"]))
        found = _with_prefix(tensors, _NETWORKS)
        if _shapes(networks.state_dict()) != _shapes(found):
            raise ValueError("weights of other shapes than the card says")
        if not all(bool(torch.isfinite(value).all()) for value in found.values()):
            raise ValueError("weights that are not finite")
        weights = {name: value.float() for name, value in found.items()}
        networks.load_state_dict(weights, assign=True)
        calibrations = None
        if card["calibrations"] is not None:
            calibrations = Calibrations.from_state(card["calibrations"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"expected a world model in {folder}, "
            f"found a card that does not fit: {error!s:.160}; {_REMEDY}"
        ) from None
    return Model(networks, calibrations, card, paths=load_paths(folder))


def load_rehearsal(folder: str | Path) -> Examples:
    """Read the branches that were saved with a model.

    Raises:
        UserError: a file is missing or damaged, as for `load`, or it holds no branches.
    """
    card, tensors = _read(Path(folder))
    arrays = _with_prefix(tensors, _REHEARSED)
    if not arrays:
        raise UserError(
            f"expected branches to rehearse in {folder}, found none; "
            "build the model anew, which writes some"
        )
    try:
        return _expanded(arrays, card["rehearsal"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"expected branches to rehearse in {folder}, found others: {error!s:.160}; {_REMEDY}"
        ) from None


@cache
def load_pretrained() -> Model:
    """Load the model that comes with the package.

    Every call returns the same object, because a model never changes.
    """
    return load(pretrained())


def pretrained() -> Path:
    """Return the folder of the model that comes with the package."""
    return Path(__file__).parent / "pretrained"


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    contents = []
    for name in (CARD, WEIGHTS):
        path = folder / name
        try:
            if path.stat().st_size > _LARGEST:
                raise UserError(
                    f"expected {path} of at most {_LARGEST} bytes, "
                    f"found {path.stat().st_size}; {_REMEDY}"
                )
            contents.append(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"expected a world model in {folder}, "
                f"found no readable {name} ({error.strerror}); {_REMEDY}"
            ) from None
    try:
        card = json.loads(contents[0])
        version = card["format"]
        digest = card["digest"]
        names = (card["state"], card["action"])
        whole = contents[0] == _text(card) and digest == _digest(contents[1], card)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"expected the card of a world model in {folder / CARD}, "
            f"found something else; {_REMEDY}"
        ) from None
    if version != FORMAT:
        raise UserError(
            f"expected {FORMAT!r} in {folder / CARD}, found {version!r:.80}; "
            "build the model anew with this version"
        )
    if not whole:
        raise UserError(
            f"expected the digest {digest!r:.80} of {WEIGHTS} and {CARD} in {folder}, "
            f"found another; {_REMEDY}"
        )
    if names != (list(STATE), list(ACTION)):
        raise UserError(
            f"expected a model in {folder} for the features of this version, "
            "found one for others; build the model anew"
        )
    try:
        return card, from_bytes(contents[1])
    except SafetensorError as error:
        raise UserError(
            f"expected safetensors in {folder / WEIGHTS}, "
            f"found something else ({error!s:.120}); {_REMEDY}"
        ) from None


def _compact(examples: Examples) -> dict[str, Any]:
    """Return the columns without `after`, and without snapshots and trunks that have no branch."""
    columns = {field.name: getattr(examples, field.name) for field in fields(Examples)}
    del columns["after"]
    used, columns["snapshot"] = np.unique(examples.snapshot, return_inverse=True)
    for name in ("states", "decision_steps", "strata", "flagged"):
        columns[name] = columns[name][used]
    runs, columns["trunk"] = np.unique(examples.trunk, return_inverse=True)
    columns["trunks"] = [examples.trunks[run] for run in runs]
    return columns


def _expanded(arrays: Mapping[str, Tensor], texts: Mapping[str, list[str]]) -> Examples:
    columns: dict[str, Any] = {}
    for name, value in arrays.items():
        columns[name] = value.numpy()
        if value.is_floating_point():
            columns[name] = columns[name].astype(np.float64)
    after = np.full((len(columns["trunk"]), DECISIONS, len(STATE)), np.nan)
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
    """Return the digest of the weights and of the card, without the card's own digest."""
    rest = {name: value for name, value in card.items() if name != "digest"}
    return hashlib.sha256(content + _text(rest)).hexdigest()


def _text(card: Any) -> bytes:
    return (json.dumps(card, sort_keys=True, allow_nan=False) + "\n").encode()


def _rounded(value: Any) -> Any:
    """Round numbers to 6 digits, because people read cards too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
