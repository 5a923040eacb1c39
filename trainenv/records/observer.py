"""Observers of a run's folder: they get what is recorded, at once, and can't disturb the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from trainenv.tools.error_text import describe_error
from trainenv.types import Run, Telemetry

if TYPE_CHECKING:
    from trainenv.records.run_folder import RunFolder


class Observer(Protocol):
    """Receiver of what a run records, while it trains.

    `train` calls the methods in this order, in the thread that trains, so each must return at once:

        train ──► start(run, folder)
                  ┌─► steps(window, line)     after each block
                  └── event(record)           as soon as it is recorded
                  finish(summary)
    """

    def start(self, run: Run, folder: RunFolder, /) -> None:
        """Prepare for a run, before its first step or where it is resumed."""
        ...

    def steps(self, window: Sequence[Telemetry], line: int, /) -> None:
        """Take in trained steps of a line of the lineage."""
        ...

    def event(self, record: Mapping[str, Any], /) -> None:
        """Take in an event, a validation loss (kind `validation` or `full_validation`) included."""
        ...

    def finish(self, summary: Mapping[str, Any] | None, /) -> None:
        """Release everything. The summary is None if an error has ended the training."""
        ...


class Observers:
    """All observers of a run. One that fails is named in a warning and gets nothing more."""

    def __init__(self) -> None:
        self._all: list[Observer] = []

    def start(self, run: Run, folder: RunFolder, observers: Sequence[Observer]) -> None:
        """Start observers."""
        self._all = list(observers)
        self._each(lambda observer: observer.start(run, folder))

    def steps(self, window: Sequence[Telemetry], line: int) -> None:
        """Pass on trained steps."""
        self._each(lambda observer: observer.steps(window, line))

    def event(self, record: Mapping[str, Any]) -> None:
        """Pass on an event."""
        self._each(lambda observer: observer.event(record))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Finish all observers."""
        self._each(lambda observer: observer.finish(summary))
        self._all = []

    def _each(self, call: Callable[[Observer], None]) -> None:
        for observer in list(self._all):
            try:
                call(observer)
            except Exception as error:
                self._all.remove(observer)
                warnings.warn(
                    f"{observer} follows the run no more: {describe_error(error)}; "
                    "the run continues",
                    stacklevel=2,
                )
