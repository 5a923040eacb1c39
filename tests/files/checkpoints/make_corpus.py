"""Write the files next to it, from which the fuzzer starts: `python tests/files/checkpoints/make_corpus.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[3]))
from tests.support.checkpoint_files import holding, small
from trainenv.checkpoints import file
from trainenv.tools.tensor_file import compression
from trainenv.types import Snapshot, Tier


def of_every_dtype() -> Snapshot:
    return holding(
        {
            f"model/{name}": torch.tensor([[1, 0, 1]]).to(dtype)
            for name, dtype in compression.DTYPES.items()
        },
        step=2**40,
    )


SEEDS: dict[str, tuple[Snapshot, Tier]] = {
    "exact.ptz": (small(), "exact"),
    "8bit.ptz": (small(), "8bit"),
    "dtypes.ptz": (of_every_dtype(), "exact"),
}

if __name__ == "__main__":
    for name, (snapshot, tier) in SEEDS.items():
        file.write(snapshot, Path(__file__).with_name(name), tier=tier, sequence=1)
