"""Device of a run, and the numeric settings that its bits depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from trainenv.config.schema import TrainingConfig
from trainenv.tools import rng
from trainenv.types import UserError


def pick(name: str) -> torch.device:
    """Return the device of a setting; `auto` is the GPU if there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda was asked for, but torch finds none; take device: auto, or install a CUDA "
            "build of torch"
        )
    return torch.device(
        "cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu"
    )


@contextmanager
def settings(config: TrainingConfig) -> Iterator[None]:
    """Apply the numeric settings of a run inside the block: threads and deterministic kernels.

    They belong to the process, so one thread at a time is inside. Bits depend on the number of
    threads. On the CPU our kernels never vary from call to call; on a GPU some do unless they are
    deterministic.
    """
    with rng.exclusive():
        threads = torch.get_num_threads()
        wanted = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        if config.deterministic:
            os.environ.setdefault(
                "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
            )  # read when cuBLAS starts; else torch refuses matmuls
            torch.use_deterministic_algorithms(True)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(wanted, warn_only=warn_only)


def numerics(
    model: nn.Module, optimizer: Optimizer, device: torch.device, config: TrainingConfig
) -> dict[str, Any]:
    """Return all settings that a run's bits depend on, as JSON values.

    A run restored under equal settings continues bit for bit. `matmul` is torch's name for the
    precision of float32 products ("tf32", "bf16"; None if torch does not say).
    """
    modules = list(model.modules())
    dtypes = {p.dtype for module in modules for p in module.parameters(recurse=False)}
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "threads": config.threads or torch.get_num_threads(),
        "precision": config.precision,
        "matmul": getattr(getattr(backend, "matmul", None), "fp32_precision", None),
        "deterministic": config.deterministic,
        "attention": None if attention is None else str(attention),
        "fused": any(bool(group.get("fused")) for group in optimizer.param_groups),
        "compiled": is_compiled(model),
        "dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in dtypes),
    }


def is_compiled(model: nn.Module) -> bool:
    """Return True if the model, or a part of it, is compiled."""
    return any(_is_compiled(module) for module in model.modules())


def _is_compiled(module: nn.Module) -> bool:
    # `torch.compile(model)` wraps, `model.compile()` does not. The wrapper's class lies in a module
    # that is slow to import.
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
    )


@cache
def _version(package: str) -> str | None:
    """Return the version of an installed package without importing it; None if it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which losses are computed at the precision that is configured."""
    if config.precision == "fp32":
        return nullcontext()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    return torch.autocast(device.type, kind)
