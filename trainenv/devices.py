"""The device a run is on, and the numeric settings that its bits depend on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainenv.config import TrainingConfig
from trainenv.types import UserError


def pick(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch finds none; take device: auto, or install a CUDA build of torch")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Refuse kernels whose result varies from call to call, inside the block. On the CPU ours never do."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; without it torch refuses matmuls
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def numerics(device: torch.device, config: TrainingConfig) -> dict[str, str | int | bool]:
    """The settings under which a restored run gives the same bits."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "precision": config.precision,
        "deterministic": config.deterministic,
    }
