"""The script that runs inside a sandbox, in one of three roles. It imports nothing of ours.

- `program`: runs a generated program, then answers calls of its functions until its input ends.
- `tests`: runs tests in another sandbox. Calls of the tested functions go to the program.
- `script`: runs a generated program as the main program, with its input and output.

The tests and the program share no process, no memory and no namespace: only plain data goes from
one to the other, as lines of JSON. So a program can't reach the verdict, or what the tests expect.
It can only answer calls. Plain data are None, truth values, numbers, strings, bytes, and tuples,
lists, sets and dictionaries of them; their equality and order are those of Python, not those of
objects that a program defines.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

LONGEST_LINE = 1 << 20  # bytes
DEEPEST = 64  # containers inside each other
_NAMED = (bytes, complex, float, frozenset, int, list, set, str, tuple, dict)
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2


class NotPlain(TypeError):
    """A value that is no plain data."""


def encode(value: Any, depth: int = 0) -> Any:
    """Return plain data as JSON values; a subclass becomes the built-in class that it extends."""
    if depth > DEEPEST:
        raise NotPlain(f"values nest at most {DEEPEST} deep")
    if value is None or value is True or value is False:
        return value
    kind = next((kind for kind in _NAMED if isinstance(value, kind)), None)
    if kind is None:
        raise NotPlain(f"a value of type {type(value).__name__} is no plain data")
    if kind is str:
        return str.__str__(value)
    if kind is int:
        return ["int", hex(int(value))]
    if kind is float:
        return ["float", float(value).hex()]
    if kind is bytes:
        return ["bytes", bytes(value).hex()]
    if kind is complex:
        return ["complex", value.real.hex(), value.imag.hex()]
    if kind is dict:
        pairs = dict.items(value)
        return ["dict", [[encode(key, depth + 1), encode(one, depth + 1)] for key, one in pairs]]
    return [kind.__name__, [encode(one, depth + 1) for one in iter(value)]]


def decode(value: Any, depth: int = 0) -> Any:
    """Return plain data from JSON values."""
    if depth > DEEPEST:
        raise NotPlain(f"values nest at most {DEEPEST} deep")
    if value is None or isinstance(value, bool | str):
        return value
    kind, *parts = value
    if kind == "int":
        return int(parts[0], 16)
    if kind == "float":
        return float.fromhex(parts[0])
    if kind == "bytes":
        return bytes.fromhex(parts[0])
    if kind == "complex":
        return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
    if kind == "dict":
        return {decode(key, depth + 1): decode(one, depth + 1) for key, one in parts[0]}
    kinds: dict[str, Callable[..., Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
    }
    return kinds[kind](decode(one, depth + 1) for one in parts[0])


def send(stream: BinaryIO, message: Any) -> None:
    """Write a message as one line."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read a message.

    Raises:
        EOFError: The other side has ended, or has sent a line that is too long or no message.
    """
    line = stream.readline(LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise EOFError("the program ended, or sent too much")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise EOFError("the program sent no message") from None


def main() -> None:
    """Read the job from the descriptor that the first argument names, and do it."""
    with os.fdopen(int(sys.argv[1]), "rb") as opened:
        job = json.load(opened)
    _limit(job)
    # The channels get other descriptors, and 0 to 2 lead nowhere, so that no `print` is a message.
    if job["role"] == "script":
        _run_script(job)
        return
    received = os.fdopen(os.dup(0), "rb")
    sent = os.fdopen(os.dup(1), "wb")
    verdict = os.fdopen(os.dup(2), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for place in range(3):
        os.dup2(nowhere, place)
    if job["role"] == "program":
        _answer(job["source"], received, sent)
    else:
        _test(job, received, sent, verdict)


def _answer(source: str, calls: BinaryIO, answers: BinaryIO) -> None:
    """Run a program, then answer calls of its functions."""
    names: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(source, "program", "exec", dont_inherit=True), names)
    except BaseException as error:
        send(answers, ["raise", type(error).__name__, _short(error)])
        return
    send(answers, ["names", [name for name, one in names.items() if callable(one)]])
    while True:
        name, args, kwargs = receive(calls)
        try:
            value = names[name](*decode(args), **decode(kwargs))
            answer = ["value", encode(value)]
        except BaseException as error:
            answer = ["raise", type(error).__name__, _short(error)]
        send(answers, answer)


class _Program:
    """The tested program, as the tests see it.

    Args:
        answers: Lines from the program.
        calls: Lines to the program.
    """

    def __init__(self, answers: BinaryIO, calls: BinaryIO) -> None:
        self._answers = answers
        self._calls = calls

    def names(self) -> list[str]:
        """Return the names of the program's functions, once it has run."""
        names = self._received("names")
        return [name for name in names if isinstance(name, str)]

    def function(self, name: str) -> Callable[..., Any]:
        """Return a function that calls the program's."""

        def call(*args: Any, **kwargs: Any) -> Any:
            send(self._calls, [name, encode(args), encode(kwargs)])
            return decode(self._received("value"))

        call.__name__ = name
        return call

    def _received(self, wanted: str) -> Any:
        try:
            kind, *parts = receive(self._answers)
            if kind == "raise":
                name, message = (str(part) for part in parts)
            elif kind != wanted:
                raise EOFError(f"the program sent {kind!r}")
            else:
                return parts[0]
        except (TypeError, ValueError) as error:
            raise EOFError(f"the program sent no answer: {error}") from None
        found = getattr(builtins, name, RuntimeError)
        # These would end a loop of the tests over `map(candidate, …)` early, as if it had passed.
        ends_loops = name in ("StopIteration", "StopAsyncIteration")
        if isinstance(found, type) and issubclass(found, Exception) and not ends_loops:
            try:
                raised = found(message)
            except Exception:
                raised = RuntimeError(message)
            raise raised
        raise RuntimeError(f"{name}: {message}")


def _test(job: dict[str, Any], answers: BinaryIO, calls: BinaryIO, verdict: BinaryIO) -> None:
    """Run tests against a program, and send the verdict: passed, and the reason if not."""
    names: dict[str, Any] = {"__name__": "tests"}
    try:
        program = _Program(answers, calls)
        defined = program.names()
        exec(compile(job["setup"], "setup", "exec", dont_inherit=True), names)
        entry = job["entry_point"]
        if entry:
            if entry not in defined:
                raise NameError(f"the program defines no function {entry}")
            names["candidate"] = names[entry] = program.function(entry)
        else:
            own = set(names) | set(dir(builtins))
            names.update({name: program.function(name) for name in defined if name not in own})
        exec(compile(job["test"], "tests", "exec", dont_inherit=True), names)
    except BaseException as error:
        reason = f"{type(error).__name__}: {_short(error)}"
        send(verdict, {"passed": False, "reason": reason})
        return
    send(verdict, {"passed": True, "reason": ""})


def _run_script(job: dict[str, Any]) -> None:
    """Run a program as the main program."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(job["source"], "program", "exec", dont_inherit=True), names)


def _limit(job: dict[str, Any]) -> None:
    """Put limits in force that the process can't raise again."""
    for name, value in job["rlimits"].items():
        kind = getattr(resource, name, None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(kind, (value, value))
    if job["seccomp"]:
        _filter(bytes.fromhex(job["seccomp"]))


def _filter(program: bytes) -> None:
    """Put a filter of system calls in force, where there is no bubblewrap to do it.

    The process also becomes unreadable for others of the same user, root excepted.
    """
    import ctypes

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    found = Filter(len(program) // 8, program)
    steps = (
        (_PR_SET_DUMPABLE, 0, 0, 0, 0),
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(found), 0, 0),
    )
    if any(libc.prctl(*step) for step in steps):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def _short(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except BaseException:
        return ""


if __name__ == "__main__":
    main()
