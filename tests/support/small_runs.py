"""Small snapshots that fit the schema, made from numbers: two of the same numbers are equal to the bit. And stores of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainenv.checkpoints.store import CheckpointStore
from trainenv.training.snapshots import capture, fingerprint
from trainenv.types import Snapshot

TRACKS = (
    *("loss", "grad_norm", "strain", "disagreement"),
    *("probe_loss", "attention_entropy", "activation_entropy", "shortcut_ratio"),
)
STATISTICS = (
    *("loss", "grad_norm", "probe_loss", "attention_entropy"),
    *("activation_entropy", "activation_mean", "activation_std"),
)


def made(step: int, seed: int = 0, *, numel: int = 5000) -> Snapshot:
    """A snapshot of `step` whose tensors and numbers are functions of `step` and `seed`.

    Args:
        step: optimizer steps completed.
        seed: below 2**32.
        numel: elements of the weight and of each of its moments; from 4096 on, the 8-bit tier rounds the moments.
    """
    generator = torch.Generator().manual_seed(step * 2**32 + seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator)

    words = torch.randint(0, 2**32, (624,), generator=generator)
    track = {"residuals": [0.5, -0.5], "scalars": [step, None, 0.0, 1.0, 1.0]}
    return capture(
        step,
        {
            "model": {
                "weight": normal(numel).view(-1, 8),
                "bias": normal(7).bfloat16(),
                "flag": torch.tensor([True, False]),
            },
            "optimizer": {
                "kind": "AdamW",
                "state": {
                    "0": {
                        "step": torch.tensor(float(step)),
                        "exp_avg": normal(numel),
                        "exp_avg_sq": normal(numel).square(),
                    }
                },
                "param_groups": [{"params": [0], "lr": 1e-3, "betas": [0.9, 0.95]}],
            },
            "scaler": {},
            "rng": {
                "torch": torch.randint(0, 256, (5056,), generator=generator, dtype=torch.uint8),
                "python": words,
                "python_rest": [3, None],
                "numpy": words + 1,
                "numpy_rest": ["MT19937", 624, 0, 0.0],
            },
            "order": {"skips": [], "reorders": [seed]},
            "clip": {"name": "zclip", "state": {"mean": normal(1)}},
            "monitor": {
                "tracks": dict.fromkeys(TRACKS, track),
                "forecasters": {
                    "weights": [[0.1, 0.2]],
                    "covariance": [[[1.0]]],
                    "features": [1.0],
                    "averages": [2.0, 2.0],
                    "scalars": [3.0, 0.1, step],
                },
                "probed": {},
                "counts": [0.0, 0, 0],
            },
            "objective": None,
            "horizon": {"end": 1000, "since": 0, "done": 0.0},
            "lr_scale": 1.0,
            "weight_decay_scale": 1.0,
            "seed": seed,
            "applied": [],
            "flagged": [],
            "reset_at": None,
            "line_flops": 1e9,
            "ledger": dict.fromkeys(
                ("main", "rewound", "verify", "plan", "evaluate", "model"), 0.0
            ),
            "numerics": {
                "torch": "2",
                "numpy": "2",
                "transformers": None,
                "python": "3",
                "device": "cpu",
                "threads": 1,
                "precision": "fp32",
                "matmul": "highest",
                "deterministic": True,
                "attention": "sdpa",
                "fused": True,
                "compiled": False,
                "dtypes": ["float32"],
            },
            "statistics": {"epoch": 0} | dict.fromkeys(STATISTICS),
        },
    )


def seed_of(snapshot: Snapshot) -> int:
    """What the snapshot was made from."""
    seed: Any = snapshot.state["seed"]
    assert isinstance(seed, int)
    return seed


def same(one: Snapshot, two: Snapshot) -> bool:
    """Equal to the bit."""
    return one.step == two.step and fingerprint(one) == fingerprint(two)


def small(step: int, seed: int = 0) -> Snapshot:
    """One too small for its moments to be rounded."""
    return made(step, seed, numel=64)


def filled(folder: Path, *steps: int, **options: Any) -> CheckpointStore:
    """A store with a checkpoint of each step, made from its place as the seed; open for writing where there is one."""
    store = CheckpointStore(folder, **{"moments": "exact"} | options)
    for seed, step in enumerate(steps):
        store.save(small(step, seed), wait=True)
    return store


def flip(path: Path, place: int) -> None:
    """Damage one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def files(folder: Path) -> list[str]:
    """What lies in a store's folder beside its lock and its list."""
    return sorted(name for name in os.listdir(folder) if name not in (".lock", "manifest.json"))
