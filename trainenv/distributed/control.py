"""One process decides, and all act: calls that process 0 sends to the others.

Process 0 trains the run through a `ControlledRun`: each call that changes the run, or that needs
all processes, is sent to the others, which wait in `follow`. They make the same call on a run of
their own, with their own part of the state. So whoever steers the run exists once, in process 0.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trainenv.distributed.group import Group, LostProcess
from trainenv.tools.error_text import describe_error
from trainenv.types import UserError


@dataclass(frozen=True, slots=True)
class _Kept:
    """An object that each process has under the same number, in a message."""

    key: int


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a method on an object that all processes have.

    Attributes:
        target: Number of the object.
        method: Name of the method or of a property; or a function of a module, which gets the
            object first.
        arguments: Arguments of the method; None to read a property.
        made: Number of the result, if it is kept.
        gather: True to collect the results of all processes.
        dropped: Numbers of objects that process 0 no longer has.
    """

    target: int
    method: str | Callable[..., Any]
    arguments: tuple[Any, ...] | None
    made: int | None
    gather: bool
    dropped: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _End:
    """The end of the control.

    Attributes:
        result: Object that `follow` returns.
        error: Sentence of the error that has ended process 0; empty without one.
    """

    result: Any
    error: str


class Controller:
    """Process 0, which sends its calls to the other processes.

    Args:
        group: Processes of the run.
        root: Object that all processes have from the start, a run.
    """

    def __init__(self, group: Group, root: Any) -> None:
        self._group = group
        self._keys: dict[int, int] = {id(root): 0}  # by the id of an object
        self._next = 1
        self._dropped: list[int] = []
        self._lost: LostProcess | None = None

    def call(
        self,
        target: Any,
        method: str | Callable[..., Any],
        arguments: tuple[Any, ...] | None,
        *,
        keep: bool = False,
        gather: bool = False,
    ) -> Any:
        """Make a call in all processes, and return the result of this one.

        Args:
            target: Object that all processes have.
            method: Name of its method or of a property; or a function of a module, which gets the
                object first.
            arguments: Arguments; objects that all processes have are replaced by their own. None to
                read a property.
            keep: True if later calls use the result.
            gather: True to return the results of all processes, as a list.

        Raises:
            LostProcess: Another process has ended, or has failed where this one did not.
        """
        if self._lost is not None:
            raise self._lost
        made = None
        if keep:
            made = self._next
            self._next += 1
        dropped = tuple(self._dropped)
        del self._dropped[: len(dropped)]
        sent = None
        if arguments is not None:
            sent = tuple(self._named(one) for one in arguments)
        message = _Call(
            target=self._keys[id(target)],
            method=method,
            arguments=sent,
            made=made,
            gather=gather,
            dropped=dropped,
        )
        try:
            self._group.send(message)
            result = _made(self._group, target, message, arguments)
        except LostProcess as lost:
            self._lost = lost
            raise
        if made is not None:
            self._keep(result, made)
        return result

    def end(self, result: Any = None, error: str = "") -> None:
        """End `follow` in the other processes.

        Args:
            result: Object that they return.
            error: Sentence of the error that ends this process; they raise it too.
        """
        if self._lost is None:
            self._group.send(_End(result=result, error=error))

    def knows(self, thing: Any) -> bool:
        """Return True if all processes have a counterpart of an object."""
        return id(thing) in self._keys

    def _named(self, argument: Any) -> Any:
        key = self._keys.get(id(argument))
        if key is None:
            return argument
        return _Kept(key)

    def _keep(self, thing: Any, key: int) -> None:
        self._keys[id(thing)] = key
        weakref.finalize(thing, self._drop, id(thing), key)

    def _drop(self, place: int, key: int) -> None:
        if self._keys.get(place) == key:
            del self._keys[place]
        self._dropped.append(key)


def follow(group: Group, root: Any) -> Any:
    """Make the calls of process 0 until it ends the control, and return what it gives.

    Args:
        group: Processes of the run.
        root: Object that all processes have from the start, a run.

    Raises:
        UserError: An error has ended process 0.
        LostProcess: Another process has ended, or has failed where this one did not.
    """
    things: dict[int, Any] = {0: root}
    while True:
        message = group.send(None)
        if isinstance(message, _End):
            if message.error:
                raise UserError(message.error)
            return message.result
        for key in message.dropped:
            things.pop(key, None)
        arguments = message.arguments
        if arguments is not None:
            arguments = tuple(
                things[one.key] if isinstance(one, _Kept) else one for one in arguments
            )
        result = None
        with suppress(_Alike):
            result = _made(group, things[message.target], message, arguments, wrap=_Alike)
        if message.made is not None:
            things[message.made] = result
        del result


class _Alike(Exception):
    """An error that every process has had."""


def _made(
    group: Group,
    target: Any,
    message: _Call,
    arguments: tuple[Any, ...] | None,
    wrap: Callable[[], Exception] | None = None,
) -> Any:
    """Make a call, and return its result once every process has made it.

    An error that all processes have is raised as it is, or as `wrap` gives it.
    """
    failure: Exception | None = None
    result = None
    try:
        if not isinstance(message.method, str):
            result = message.method(target, *(arguments or ()))
        elif arguments is None:
            result = getattr(target, message.method)
        else:
            result = getattr(target, message.method)(*arguments)
    except LostProcess:
        raise
    except Exception as error:
        failure = error
        for heartbeat in group.heartbeats:  # others may be waiting for this process in a step
            heartbeat.fail(describe_error(error))
    failed = group.count(failure is not None)
    for heartbeat in group.heartbeats:
        heartbeat.fail("")
    if failed not in (0, group.size):
        texts = group.gathered("" if failure is None else describe_error(failure))
        rank = next(rank for rank, text in enumerate(texts) if text)
        raise LostProcess(
            f"expected all processes to do the same, found that process {rank} failed where others "
            f"did not: {texts[rank]}; correct this, and resume from the newest checkpoint"
        )
    if failure is not None:
        raise failure if wrap is None else wrap()
    if message.gather:
        return group.gathered(result)
    return result
