"""Files of a path model: weights as safetensors and a card as JSON, without pickle.

| file | content |
|---|---|
| `paths.safetensors` | ensemble, in float16; scales of its inputs in float32 |
| `paths.json` | format, digest of the weights, sizes, names of the inputs, calibration, origin |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainenv.tools.atomic_files import write_file
from trainenv.types import UserError
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.paths.inputs import PATH
from trainenv.worldmodel.paths.model import PathValueModel
from trainenv.worldmodel.paths.network import Ensemble, Shape

FORMAT = "trainenv path model 1"
WEIGHTS = "paths.safetensors"
CARD = "paths.json"
_REMEDY = (
    "copy both files anew from where they were built, "
    "or build them with `trainenv worldmodel build`"
)
_LARGEST = 16 * 2**20  # a file with more bytes is refused


def save_paths(
    model: PathValueModel, folder: str | Path, card: Mapping[str, Any] | None = None
) -> None:
    """Write a path model into a folder, each file whole or not at all.

    Args:
        model: Model.
        folder: Folder to write into; it is created if it does not exist.
        card: Origin and measured quality of the model, as JSON values.
    """
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().half() if name.startswith(("weights", "biases")) else value.detach()
        for name, value in model.ensemble.state_dict().items()
    }
    content = to_bytes({name: value.contiguous() for name, value in tensors.items()})
    described = {
        **(card or {}),
        "format": FORMAT,
        "digest": hashlib.sha256(content).hexdigest(),
        "shape": asdict(model.ensemble.shape),
        "width": model.width,
        "state": list(STATE),
        "path": list(PATH),
    }
    write_file(folder / WEIGHTS, content, fsync=True)
    text = json.dumps(described, sort_keys=True, indent=1, allow_nan=False) + "\n"
    write_file(folder / CARD, text, fsync=True)


def load_paths(folder: str | Path) -> PathValueModel | None:
    """Read the path model in a folder; None if there is none.

    Raises:
        UserError: A file is missing, damaged, or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    folder = Path(folder)
    if not (folder / CARD).exists() and not (folder / WEIGHTS).exists():
        return None
    try:
        if max((folder / name).stat().st_size for name in (CARD, WEIGHTS)) > _LARGEST:
            raise ValueError(f"a file of more than {_LARGEST} bytes")
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()
        if card["format"] != FORMAT or card["digest"] != hashlib.sha256(content).hexdigest():
            raise ValueError("another format or digest")
        if (card["state"], card["path"]) != (list(STATE), list(PATH)):
            raise ValueError("inputs of another version")
        width = float(card["width"])
        ensemble = Ensemble(Shape(**card["shape"]))
        tensors = {name: value.float() for name, value in from_bytes(content).items()}
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise ValueError("weights that are not finite")
        ensemble.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"expected a path model in {folder}, found {error!s:.160}; {_REMEDY}"
        ) from None
    return PathValueModel(ensemble, width)
