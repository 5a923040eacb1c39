"""One job at a time beside the training, and a SIGTERM that lets it finish."""

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
    """Runs a job on a thread that the interpreter waits for when it exits.

    What went wrong is kept until somebody takes it.

    Attributes:
        notes: what a job has to say to the user, who is on another thread.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._failures: list[Exception] = []
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        # Called when this object is collected, or at exit after the last job has ended: no failure
        # goes unheard.
        weakref.finalize(self, _tell_unheard, self._pid, self.notes, self._failures)

    def start(self, job: Callable[..., None], *arguments: Any) -> None:
        """Start a job. The one before must have been joined."""
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
        """Whether there is a job that has not been waited for to its end."""
        return self._thread is not None and os.getpid() == self._pid

    def join(self) -> None:
        """Wait until the job has ended, if one is running."""
        while self.running and self._thread is not None:  # a child made by fork has no such thread
            # Thread.join comes second: one that a signal interrupts takes the thread for dead
            # (python/cpython#90882), and then nobody waits for it any more, not even the
            # interpreter at its end.
            if self._ended.wait(0.1):
                self._thread.join()  # so that it holds nothing any more
                self._thread = None
            elif not self._thread.is_alive():  # it never began: a signal came between
                self._thread = None

    def take_failure(self) -> Exception | None:
        """What the last job failed with, once."""
        return self._failures.pop() if self._failures else None

    def _work(self, job: Callable[..., None], *arguments: Any) -> None:
        try:
            job(*arguments)
        except Exception as error:
            if isinstance(
                error, UserError
            ):  # says all there is to say; its frames would keep the job's arguments in memory
                error.__traceback__ = error.__context__ = None
            self._failures.append(error)
        finally:
            self._ended.set()


def _tell_unheard(pid: int, notes: list[str], failures: list[Exception]) -> None:
    for what in [*notes, *failures] if pid == os.getpid() else []:
        warnings.warn(str(what), stacklevel=2)


class Termination:
    """SIGTERM as `SystemExit(143)`, so that the blocks it comes in unwind as they would by any other exception.

    Only on the main thread, and only where SIGTERM would do what it does by default. A child made
    by fork has the default again.
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
        """Put the default back, unless somebody else has put something there meanwhile."""
        if self._begun and signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._begun = False
        _BEGUN.discard(self)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What is inside runs to its end; a signal that came meanwhile takes effect then."""
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
