"""Hostile programs: none escapes, none passes, none hangs; all of them where LONG_TESTS is set."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support import hostile_programs
from tests.support.hostile_programs import SECRET, Hostile
from tests.support.lengths import either
from tests.support.sandboxes import ISOLATES, LIMITS, sandbox
from trainenv.evaluation import RlimitsOnly
from trainenv.evaluation.sandbox import FunctionTests, Verdict, check, check_all

ADDS = FunctionTests("for n in range(3, 9):\n    assert candidate(n) == n + 1\n", entry_point="f")
FEW = {
    "fork bomb",
    "thread bomb",
    "kill the parent",
    "socket AF_INET SOCK_STREAM",
    "write below /usr",
    "many files",
    "read the secret",
    "read a symbolic link",
    "read environment of the parent",
    "ignored signals",
    "a growing list",
    "hard exit",
    "success, then exit",
    "an equal number",
    "forged answer 2",
}


def known(folder: Path) -> list[Hostile]:
    """Those that this machine can hold."""
    canary = folder / "canary"
    canary.write_text(SECRET, encoding="utf-8")
    found = hostile_programs.programs(str(canary), os.path.expanduser("~"), os.getcwd())
    return [program for program in found if ISOLATES or not program.isolated]


def escaped(verdict: Verdict) -> bool:
    return verdict.passed or bool(re.search(f"ESCAPED|{SECRET}", verdict.reason))


def test_none_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINENV_SECRET", SECRET)
    every = known(tmp_path)
    assert len({program.name for program in every}) == len(every) >= either(short=100, long=100)
    chosen = [one for one in every if either(short=one.name in FEW, long=True)]
    before = sorted(os.listdir(tmp_path))
    jobs = [(program.source, ADDS) for program in chosen]
    verdicts = check_all(sandbox(), jobs, workers=2)
    found = {str(program): one for program, one in zip(chosen, verdicts) if escaped(one)}
    assert not found
    assert all(one.reason for one in verdicts)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "canary").read_text(encoding="utf-8") == SECRET
    # The harness still works.
    assert check(sandbox(), "def f(x):\n    return x + 1\n", ADDS).passed


def test_there_are_about_two_hundred() -> None:
    every = list(hostile_programs.programs("/canary", "/home", "/"))
    assert len(every) >= 200
    assert {one.name for one in every} >= FEW


@pytest.mark.parametrize("name", ["read the secret", "read a symbolic link", "read variables"])
def test_the_attempts_are_real(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without namespaces these succeed, so that the test above can fail."""
    (tmp_path / "canary").write_text(SECRET, encoding="utf-8")
    every = hostile_programs.programs(str(tmp_path / "canary"), "/", "/")
    source = next(one.source for one in every if one.name == name)
    source = source.replace("/tmp/link", str(tmp_path / "link"))
    source = source.replace("os.environ['TRAINENV_SECRET']", "os.environ['LC_CTYPE']")
    weak = RlimitsOnly(without_isolation=True, limits=LIMITS)
    assert escaped(check(weak, source, ADDS))
