"""Generated programs, run against tests or with an input: one at a time, or many at once."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO

from trainenv.evaluation.sandbox.isolation import Sandbox
from trainenv.evaluation.sandbox.launch import read_bounded, started
from trainenv.tools.portable import cores
from trainenv.types import UserError

_VERDICT = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class FunctionTests:
    """Tests that call functions of a program.

    Attributes:
        test: Code of the tests; it passes if it runs to its end.
        setup: Code that runs before the tests, among them and not in the program.
        entry_point: Tested function, which the tests also know as `candidate`; if empty, the tests
            know all functions of the program that have no name of the setup.
    """

    test: str
    setup: str = ""
    entry_point: str = ""


@dataclass(frozen=True, slots=True)
class InputOutput:
    """A test that gives a program an input and compares its output, word by word.

    Attributes:
        given: Text of the standard input.
        expected: Text that is expected on the standard output.
    """

    given: str
    expected: str


Tests = FunctionTests | tuple[InputOutput, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the tests of one program.

    Attributes:
        passed: True if all tests passed.
        reason: `time`, `output`, or a sentence that says what failed; empty if they passed.
        seconds: Wall-clock time that it took.
    """

    passed: bool
    reason: str
    seconds: float


def check(sandbox: Sandbox, source: str, tests: Tests) -> Verdict:
    """Run a program against its tests; nothing that the program does can raise an error here.

    Raises:
        UserError: The sandbox can't be started.
    """
    begun = time.monotonic()
    try:
        if isinstance(tests, FunctionTests):
            passed, reason = _call(sandbox, source, tests)
        else:
            passed, reason = _all_equal(sandbox, source, tests)
    except OSError as error:
        raise UserError(
            f"expected to start the sandbox, found {error}; check that bwrap runs here"
        ) from None
    return Verdict(passed, reason, time.monotonic() - begun)


def check_all(
    sandbox: Sandbox,
    programs: Iterable[tuple[str, Tests]],
    *,
    workers: int | None = None,
    done: Callable[[Verdict], None] | None = None,
) -> list[Verdict]:
    """Run many programs against their tests, several at once; return the verdicts in order.

    Args:
        sandbox: Isolation of the programs.
        programs: Source and tests of each program.
        workers: Number of programs that run at once; one a processor by default.
        done: Function that is called with each verdict, in order.
    """
    if workers is None:
        workers = cores()
    verdicts = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        waiting = [pool.submit(check, sandbox, source, tests) for source, tests in programs]
        try:
            for future in waiting:
                verdicts.append(future.result())
                if done is not None:
                    done(verdicts[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return verdicts


def check_sandbox(sandbox: Sandbox) -> None:
    """Check that a sandbox starts here, with a program that passes and one that fails.

    Raises:
        UserError: It does not start; user namespaces may be forbidden on this machine.
    """
    tests = FunctionTests("assert candidate(1) == 2", entry_point="f")
    right = check(sandbox, "def f(x):\n    return x + 1\n", tests)
    wrong = check(sandbox, "def f(x):\n    return x\n", tests)
    if not right.passed or wrong.passed:
        raise UserError(
            "expected a sandbox that runs programs, found one that does not "
            f"({right.reason or wrong.reason}); user namespaces must be allowed for bubblewrap, or "
            "pass RlimitsOnly(without_isolation=True) if the programs may read your files"
        )


def run_script(sandbox: Sandbox, source: str, given: str = "") -> tuple[bytes, str]:
    """Run a program as the main program.

    Returns:
        Its standard output, bounded, and the reason if it did not end well: `time`, `output` or
        `status N`.
    """
    until = time.monotonic() + sandbox.limits.wall_s
    job = {"role": "script", "source": source}
    limit = int(sandbox.limits.output_kb * 1024)
    given_at = os.memfd_create("trainenv-input")
    with os.fdopen(given_at, "wb+") as file:
        file.write(given.encode(errors="replace"))
        file.seek(0)
        with started(
            sandbox, job, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            (output,), reason = read_bounded([_pipe(process.stdout)], limit, until)
            if not reason:
                reason = _ended(process, until)
    return output, reason


def _call(sandbox: Sandbox, source: str, tests: FunctionTests) -> tuple[bool, str]:
    """Run the program in one sandbox and its tests in another, with pipes between them."""
    until = time.monotonic() + sandbox.limits.wall_s
    program = {"role": "program", "source": source}
    judge = {
        "role": "tests",
        "setup": tests.setup,
        "test": tests.test,
        "entry_point": tests.entry_point,
    }
    calls_out, calls_in = os.pipe()
    answers_out, answers_in = os.pipe()
    ends = [calls_out, calls_in, answers_out, answers_in]
    start = partial(started, sandbox)
    try:
        with (
            start(program, stdin=calls_out, stdout=answers_in, stderr=subprocess.DEVNULL),
            start(judge, stdin=answers_out, stdout=calls_in, stderr=subprocess.PIPE) as process,
        ):
            while ends:
                os.close(ends.pop())
            (said,), reason = read_bounded([_pipe(process.stderr)], _VERDICT, until)
    finally:
        for end in ends:
            os.close(end)
    if reason:
        return False, reason
    try:
        verdict = json.loads(said.splitlines()[-1])
        return verdict["passed"] is True, str(verdict["reason"])
    except (ValueError, LookupError, TypeError):
        found = said.decode(errors="replace").strip().splitlines()
        return False, f"no verdict: {' '.join(found)[-200:] or 'the tests were stopped'}"


def _all_equal(sandbox: Sandbox, source: str, tests: Sequence[InputOutput]) -> tuple[bool, str]:
    for place, test in enumerate(tests):
        output, reason = run_script(sandbox, source, test.given)
        if reason:
            return False, reason
        if output.decode(errors="replace").split() != test.expected.split():
            return False, f"wrong output of test {place + 1} of {len(tests)}"
    return True, ""


def _ended(process: subprocess.Popen[bytes], until: float) -> str:
    """Wait for the end of a process whose output is closed."""
    try:
        status = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "time"
    if status:
        return f"status {status}"
    return ""


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "a pipe was asked for"
    return stream
