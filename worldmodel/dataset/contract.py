"""The function that makes the runs of a data set, where other processes can import it.

def make_run(overrides):     # at the top of a module
return TrainingRun.from_config("tiny", overrides)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainenv.types import Run

__all__ = ["MakeRun", "Run"]

MakeRun = Callable[[Mapping[str, Any]], Run]
"""Function from configuration overrides, by dotted key, to a fresh run.

It is called once for each trunk, perhaps in another process.
"""
