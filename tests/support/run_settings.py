"""A run of a real model that is as small as it gets."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "steps": 120,
    "threads": 1,
    "batch_size": 4,
    "model": {"width": 16, "layers": 1, "heads": 2, "context": 16},
    "optimizer.lr": 6e-3,
    "schedule.warmup": 5,
    "validation": {"every": 0, "sequences": 8},
    "monitor": {"block": 5, "probe_every": 3, "probe_sequences": 2},
}
