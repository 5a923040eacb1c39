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
def settings(config: TrainingConfig) -> Iterator[None]:
    """The numeric settings of a run, in force inside the block and undone after it: threads, and deterministic kernels.

    Bits depend on the number of threads. On the CPU our kernels never vary from call to call; on a GPU some do unless told.
    """
    threads, wanted = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; without it torch refuses matmuls
        torch.use_deterministic_algorithms(True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(wanted, warn_only=warn_only)


def numerics(device: torch.device, config: TrainingConfig) -> dict[str, str | int | bool]:
    """The settings under which a restored run gives the same bits."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": config.threads or torch.get_num_threads(),
        "precision": config.precision,
        "deterministic": config.deterministic,
    }
