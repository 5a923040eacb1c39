"""Export of a snapshot as a folder that `torch.distributed.checkpoint` (DCP) loads.

    {"model": {name: tensor}, "optimizer": {"state": {name: {…}}, "param_groups": […]}, "step": n}

The optimizer is in the form of `torch.distributed.checkpoint.state_dict`, by the names of the
parameters, so that `set_state_dict` loads it into any number of processes, however they cut it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainenv.checkpoints.interop import torch_state_dict
from trainenv.checkpoints.part_files import PROCESSES
from trainenv.training import snapshots
from trainenv.types import Snapshot, UserError


def export(snapshot: Snapshot, folder: Path) -> int:
    """Write a snapshot of whole tensors; return the bytes of the files.

    Raises:
        UserError: The folder is not empty or can't be written, or the snapshot has no model or does
            not name its parameters.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists; give the path of a new folder, or delete it")
    state = snapshots.expand(snapshot)
    if "model" not in state or "optimizer" not in state:
        raise UserError(
            "expected the snapshot of a training run, found one without a model; give a snapshot "
            "that has weights"
        )
    parts = snapshot.state.get(PROCESSES)
    if parts is None:
        raise UserError(
            "--dcp is for checkpoints that several processes have saved, found one of a single "
            "process; leave --dcp out and give a file that ends in .safetensors or .pt"
        )
    names = [name for name, _ in parts["parameters"]]
    content = {
        "model": dict(state["model"]),
        "optimizer": _by_name(torch_state_dict(state["optimizer"]), names),
        "step": snapshot.step,
    }
    try:
        with warnings.catch_warnings():
            # Saving in a single process is what is meant.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            save(content, storage_writer=FileSystemWriter(folder), no_dist=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} could not be written: {error}") from None
    return sum(path.stat().st_size for path in folder.iterdir())


def _by_name(optimizer: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the state dict of an optimizer with names in place of numbers."""
    return {
        "state": {names[place]: entry for place, entry in optimizer["state"].items()},
        "param_groups": [
            {**group, "params": [names[place] for place in group["params"]]}
            for group in optimizer["param_groups"]
        ],
    }
