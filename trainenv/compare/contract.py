"""What a comparison asks of its parts: methods that train, and what measures the folder that a method has left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from trainenv.config.schema import RunConfig
    from trainenv.types import Run, Telemetry

Watch = Callable[["Run", Sequence["Telemetry"]], None]
Stop = Callable[[], bool]


class Method(Protocol):
    """Trains a run.

    At the top of a module (or a frozen dataclass), so that other processes can import it.
    """

    def __call__(
        self, config: RunConfig, folder: Path, watch: Watch, stop: Stop, /
    ) -> dict[str, Any]:
        """Train the run of `config` at the budget of `config.steps` steps' worth of compute, recording in `folder`.

        Args:
            config: of the run; its seed is that of every random choice.
            folder: does not exist yet.
            watch: called after each block of telemetry.
            stop: asked after each block.

        Returns:
            The summary as `trainenv.loop.train` returns it; `ended` is `interrupted` where `stop`
            has ended it.
        """
        ...


class Measure(Protocol):
    """Says what became of the run in a folder."""

    def __call__(self, folder: Path, /) -> Mapping[str, Any]:
        """The keys of `trainenv.compare.cells.MEASURED`."""
        ...
