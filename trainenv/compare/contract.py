"""Protocols of a comparison's parts: methods that train runs, and measures of the folders."""

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
    """Function that trains a run.

    It is at the top of a module, or a frozen dataclass, so that other processes can import it.
    """

    def __call__(
        self, config: RunConfig, folder: Path, watch: Watch, stop: Stop, /
    ) -> dict[str, Any]:
        """Train the run of `config` with the compute of `config.steps` steps; record in `folder`.

        Args:
            config: Configuration of the run; all random choices depend on its seed.
            folder: Folder to record in; it does not exist yet.
            watch: Function that is called after each block of telemetry.
            stop: Function that is called after each block; True ends the run.

        Returns:
            The summary that `trainenv.loop.train` returns; `ended` is `interrupted` if `stop` ended
            the run.
        """
        ...


class Measure(Protocol):
    """Function that measures the run in a folder."""

    def __call__(self, folder: Path, /) -> Mapping[str, Any]:
        """Return a value for each key of `trainenv.compare.cells.MEASURED`.

        Final losses are of the validation set. `test_loss` may be left out if no scenario has test
        sequences; else the cell's final losses are taken from it.
        """
        ...
