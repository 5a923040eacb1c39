"""One background job at a time, and a SIGTERM that lets it finish."""

from __future__ import annotations

import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trainenv.tools import portable
from trainenv.types import UserError


class Background:
    """A thread for one job at a time; the interpreter waits for it when it exits.

    An exception of the job is kept until it is taken.

    Attributes:
        notes: Messages of the jobs to the user, for the thread that the store is used from.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._failures: list[Exception] = []
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        # Called when this object is collected, or at exit after the last job has ended, so that
        # every failure is reported.
        weakref.finalize(self, _warn_of_unreported, self._pid, self.notes, self._failures)

    def start(self, job: Callable[..., None], *arguments: Any) -> None:
        """Start a job; the one before must have been joined."""
        assert self._thread is None
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(job, *arguments), name="checkpoint", daemon=False
        )
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, or there are too many threads
            self._thread = None
            self._work(job, *arguments)

    @property
    def running(self) -> bool:
        """True from the start of a job until it has been joined."""
        return self._thread is not None and os.getpid() == self._pid

    def join(self) -> None:
        """Wait until the job has ended, if one is running."""
        while self.running and self._thread is not None:  # a child made by fork has no thread
            # The event is waited for first. A Thread.join that a signal interrupts takes the thread
            # for dead (python/cpython#90882); then nothing waits for it any more, not even the
            # interpreter at its end.
            if self._ended.wait(0.1):
                self._thread.join()  # frees what the thread holds
                self._thread = None
            elif not self._thread.is_alive():  # a signal came before the thread began
                self._thread = None

    def take_failure(self) -> Exception | None:
        """Return the exception of the last job and forget it; None if it succeeded."""
        if not self._failures:
            return None
        return self._failures.pop()

    def _work(self, job: Callable[..., None], *arguments: Any) -> None:
        try:
            job(*arguments)
        except Exception as error:
            if isinstance(error, UserError):
                # Its message is complete; its frames would keep the job's arguments in memory.
                error.__traceback__ = error.__context__ = None
            self._failures.append(error)
        finally:
            self._ended.set()


def _warn_of_unreported(pid: int, notes: list[str], failures: list[Exception]) -> None:
    if pid != os.getpid():
        return
    for problem in [*notes, *failures]:
        warnings.warn(str(problem), stacklevel=2)


class Termination:
    """SIGTERM as `SystemExit(143)`, so that `with` blocks unwind as after any other exception.

    It takes effect only on the main thread, and only where SIGTERM has its default action. A child
    made by fork has the default again.
    """

    def __init__(self) -> None:
        self._begun = self._deferred = self._came = False

    def begin(self) -> None:
        on_main = threading.current_thread() is threading.main_thread()
        if on_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_signal)
            self._begun = True
            _BEGUN.add(self)

    def end(self) -> None:
        """Restore the default, unless another handler has been installed meanwhile."""
        if self._begun and signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._begun = False
        _BEGUN.discard(self)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Run the block to its end; a signal that came meanwhile takes effect afterwards."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._came:
            self._came = False
            raise SystemExit(128 + signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred:
            raise SystemExit(128 + number)
        self._came = True


_BEGUN: weakref.WeakSet[Termination] = weakref.WeakSet()


def _end_all() -> None:
    for termination in list(_BEGUN):
        termination.end()


portable.after_fork_in_child(_end_all)
