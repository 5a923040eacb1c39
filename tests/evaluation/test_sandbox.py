"""Sandboxes: what is started, what a program may do, and whose word the verdict is."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lengths import either
from tests.support.sandboxes import ISOLATES, LIMITS, sandbox, sandboxes
from trainenv.evaluation import Bubblewrap, Limits, RlimitsOnly, Sandbox
from trainenv.evaluation.sandbox import (
    FunctionTests,
    InputOutput,
    check,
    check_all,
    check_sandbox,
    inside,
    programs,
    run_script,
    seccomp,
)
from trainenv.types import UserError

ADDS = FunctionTests("for n in range(3, 9):\n    assert candidate(n) == n + 1\n", entry_point="f")
RIGHT = "def f(x):\n    return x + 1\n"
KINDS = pytest.mark.parametrize("kind", sandboxes(), ids=lambda kind: type(kind).__name__)


# ── what is started ───────────────────────────────────────────────────────────────────────────────


def fake_bwrap(folder: Path, script: str = "exit 1") -> str:
    file = folder / "bwrap"
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
    return str(file)


def test_the_command_isolates_everything(tmp_path: Path) -> None:
    made = Bubblewrap(path=fake_bwrap(tmp_path), limits=Limits(disk_mb=3))
    words = made.command(["-c", "pass"], 7)
    options = words[: words.index("--")]
    assert words[0] == str(tmp_path / "bwrap")
    assert {"--unshare-all", "--die-with-parent", "--new-session", "--clearenv"} <= set(options)
    assert not {"--share-net", "--bind", "--proc", "--dev"} & set(options)
    following = {word: options[place + 1] for place, word in enumerate(options[:-1])}
    assert following["--seccomp"] == "7"
    assert following["--cap-drop"] == "ALL"
    assert following["--uid"] == "65534"
    assert following["--size"] == str(3 << 20)
    assert following["--tmpfs"] == "/tmp"
    # The root is made read-only after all else is in place, /tmp excepted.
    assert options.index("--remount-ro") > options.index("--tmpfs")
    bound = [options[n + 1] for n, word in enumerate(options) if word == "--ro-bind"]
    home = os.path.expanduser("~")
    assert bound
    assert not any(path in ("/", "/etc", "/home", home) for path in bound)
    assert not any(Path(__file__).is_relative_to(path) for path in bound)
    devices = [options[n + 1] for n, word in enumerate(options) if word == "--dev-bind"]
    assert set(devices) == {"/dev/null", "/dev/zero", "/dev/urandom"}
    assert os.path.realpath(words[words.index("--") + 1]) in bound
    assert words[-2:] == ["-c", "pass"]


def test_without_bubblewrap_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="expected the program bwrap, found none; install"):
        Bubblewrap()


def test_limits_alone_have_to_be_asked_for_in_words() -> None:
    with pytest.raises(TypeError):
        RlimitsOnly()  # type: ignore[call-arg]
    for given_ in (False, 1, "yes"):
        with pytest.raises(UserError, match="does not isolate programs"):
            RlimitsOnly(without_isolation=given_)  # type: ignore[arg-type]


def test_a_sandbox_that_does_not_start_is_a_sentence(tmp_path: Path) -> None:
    """Imitate a machine without user namespaces: bwrap ends with an error of its own."""
    broken = Bubblewrap(path=fake_bwrap(tmp_path, "echo 'bwrap: no permissions' >&2; exit 1"))
    assert "bwrap: no permissions" in check(broken, RIGHT, ADDS).reason
    with pytest.raises(UserError, match="no verdict: bwrap: no permissions"):
        check_sandbox(broken)


@pytest.mark.parametrize("name", ["wall_s", "cpu_s", "memory_mb", "disk_mb", "files", "output_kb"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_above_zero(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"the limit {name}"):
        Limits(**{name: value})


# ── the filter of system calls ────────────────────────────────────────────────────────────────────


def filtered(program: bytes, architecture: int, number: int) -> int:
    """Small interpreter of the filter, in place of the kernel."""
    steps = list(struct.iter_unpack("=HBBI", program))
    data = {0: number, 4: architecture}
    place = word = 0
    while True:
        code, true, false, value = steps[place]
        place += 1
        if code == 0x20:
            word = data[value]
        elif code == 0x15:
            place += true if word == value else false
        elif code == 0x35:
            place += true if word >= value else false
        else:
            assert code == 0x06
            return value


ALLOWED, REFUSED, UNKNOWN, KILLED = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize(
    ("machine", "architecture", "allowed", "refused"),
    [
        ("x86_64", 0xC000003E, [0, 1, 2, 9, 59, 231, 257], [41, 56, 57, 58, 62, 101, 165, 272]),
        ("aarch64", 0xC00000B7, [56, 63, 64, 93, 94, 222], [40, 97, 117, 129, 198, 220, 268]),
    ],
)
def test_the_filter_refuses_processes_signals_and_sockets(
    machine: str, architecture: int, allowed: list[int], refused: list[int]
) -> None:
    program = seccomp.program(machine)
    assert {filtered(program, architecture, number) for number in allowed} == {ALLOWED}
    assert {filtered(program, architecture, number) for number in refused} == {REFUSED}
    assert filtered(program, architecture, 435) == UNKNOWN  # clone3
    assert filtered(program, 0x40000003, allowed[0]) == KILLED  # calls of a 32-bit machine


def test_the_second_set_of_calls_is_no_way_around() -> None:
    program = seccomp.program("x86_64")
    assert filtered(program, 0xC000003E, 0x40000000 + 57) == KILLED
    assert seccomp.program("riscv64") == b""


# ── verdicts ──────────────────────────────────────────────────────────────────────────────────────


@KINDS
def test_a_right_program_passes_and_a_wrong_one_does_not(kind: Sandbox) -> None:
    assert check(kind, RIGHT, ADDS).passed
    assert check(kind, f"print('noise')\n{RIGHT}print('more')\n", ADDS).passed
    for wrong in ("def f(x):\n    return x\n", "", "def f(x):\n    return str(x + 1)\n", "1 / 0"):
        verdict = check(kind, wrong, ADDS)
        assert not verdict.passed
        assert verdict.reason
    assert "ZeroDivisionError: division by zero" in check(kind, "1 / 0", ADDS).reason


@KINDS
def test_data_of_every_plain_type_go_both_ways(kind: Sandbox) -> None:
    values = (
        "None, True, 2 ** 80, -3, 1.5, float('inf'), 'ü\\n\\0', b'\\xff', 1j, (1, [2, {3: {4}}]), "
        "{(1, 2): frozenset({5})}, [], '', ()"
    )
    test = FunctionTests(
        f"for one in [{values}]:\n"
        "    found = candidate(one)\n"
        "    assert found == one and type(found) is type(one), (found, one)\n"
        "assert candidate(x=3) == 3\n",
        entry_point="same",
    )
    assert check(kind, "def same(x):\n    return x\n", test).reason == ""


def test_the_tests_see_errors_by_their_name() -> None:
    test = FunctionTests(
        "try:\n    candidate(0)\nexcept ZeroDivisionError:\n    pass\n"
        "else:\n    raise AssertionError\n",
        entry_point="f",
    )
    assert check(sandbox(), "def f(x):\n    return 1 / x\n", test).passed
    assert not check(sandbox(), "def f(x):\n    return {}[x]\n", test).passed
    assert not check(sandbox(), "def f(x):\n    return x\n", test).passed


@pytest.mark.parametrize("name", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
def test_an_error_can_not_end_a_loop_of_the_tests(name: str) -> None:
    test = FunctionTests(
        "for found, n in zip(map(candidate, range(3)), range(3)):\n    assert found == n + 1\n",
        entry_point="f",
    )
    assert check(sandbox(), RIGHT, test).passed
    assert not check(sandbox(), f"def f(x):\n    raise {name}\n", test).passed


def test_the_setup_belongs_to_the_tests() -> None:
    """A program can't redefine what the tests compare with."""
    test = FunctionTests("assert f(2) == double(2)", setup="def double(x):\n    return 2 * x\n")
    cheat = "def double(x):\n    return 0\n\ndef f(x):\n    return 0\n"
    assert not check(sandbox(), cheat, test).passed
    assert check(sandbox(), "def f(x):\n    return x + x\n", test).passed


@KINDS
def test_inputs_and_outputs_are_compared_by_words(kind: Sandbox) -> None:
    source = "a, b = map(int, input().split())\nprint(a + b)\n"
    cases = (InputOutput("1 2\n", "3\n"), InputOutput("5 6", " 11 "))
    assert check(kind, source, cases).passed
    wrong = check(kind, source, (*cases, InputOutput("1 1", "3")))
    assert wrong.reason == "wrong output of test 3 of 3"
    assert check(kind, "1 / 0", cases).reason == "status 1"


@KINDS
def test_time_and_output_have_an_end(kind: Sandbox) -> None:
    assert run_script(kind, "print('x' * 10, end='')") == (b"x" * 10, "")
    output, reason = run_script(kind, "while True:\n    print('x' * 1000)")
    assert (len(output), reason) == (LIMITS.output_kb * 1024, "output")
    short = type(kind)(  # type: ignore[call-arg]
        limits=Limits(wall_s=0.6),
        **({} if isinstance(kind, Bubblewrap) else {"without_isolation": True}),
    )
    assert run_script(short, "import time\ntime.sleep(10**6)")[1] == "time"
    assert check(short, "import time\ntime.sleep(10**6)", ADDS).reason == "time"


def test_verdicts_come_in_order() -> None:
    sources = [RIGHT, "def f(x):\n    return 0\n", RIGHT, "", RIGHT]
    seen = []
    verdicts = check_all(
        sandbox(), [(source, ADDS) for source in sources], workers=3, done=seen.append
    )
    assert [verdict.passed for verdict in verdicts] == [True, False, True, False, True]
    assert seen == verdicts


def test_nothing_is_left_open() -> None:
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    check(sandbox(), RIGHT, ADDS)
    run_script(sandbox(), "print(1)")
    after = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    assert len(after) <= len(before)


def test_a_process_that_cannot_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("subprocess.Popen", refuse)
    with pytest.raises(UserError, match="no more processes"):
        programs.check(sandbox(), RIGHT, ADDS)


# ── messages ──────────────────────────────────────────────────────────────────────────────────────

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.sets(st.integers() | st.text(), max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
@settings(max_examples=either(short=40, long=400))
def test_plain_data_come_back_as_they_were(value: object) -> None:
    found = inside.decode(inside.encode(value))
    assert found == value
    assert type(found) is type(value)


class Always(int):
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True


def test_objects_lose_their_own_equality() -> None:
    found = inside.decode(inside.encode([Always(3)]))
    assert type(found[0]) is int
    assert found != [4]


@pytest.mark.parametrize("value", [object(), print, iter([]), inside, {1: object()}])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(inside.NotPlain):
        inside.encode(value)


def test_depth_is_bounded() -> None:
    value: list[object] = []
    for _ in range(1000):
        value = [value]
    with pytest.raises(inside.NotPlain, match="deep"):
        inside.encode(value)
    message: list[object] = ["list", []]
    for _ in range(200):
        message = ["list", [message]]
    with pytest.raises(inside.NotPlain, match="deep"):
        inside.decode(message)


def test_this_machine_was_tested_with_all_that_it_allows() -> None:
    assert isinstance(sandbox(), Bubblewrap) is ISOLATES
