"""Runs train, save and resume where fcntl, fork and other calls of POSIX are missing."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.without_posix import CALLS, MODULES
from trainenv.checkpoints import lock
from trainenv.checkpoints.lock import FolderLock
from trainenv.tools import portable
from trainenv.types import UserError

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PACKAGES = ("trainenv", "planners", "worldmodel", "agents")
PORTABLE = "trainenv/tools/portable.py"
SANDBOXED = "trainenv/evaluation/sandbox/inside.py"  # a script for Linux; no module imports it
SIGNALS = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "pthread_sigmask")

# ── a machine without POSIX ─────────────────────────────────────────────────────────────────────

TRAINS_SAVES_RESUMES = """
import pytest, torch, gymnasium, transformers, pandas, pyarrow.parquet, scipy.special, psutil
import rich.progress
from tests.support.without_posix import lose_posix
lose_posix()

import pathlib
import trainenv
from tests.support.command_line import asks_to_stop_at, final, sets
from trainenv.cli import main

assert main(["run", "tiny", *sets(), "--json", "--out", "straight"]) == 0
with pytest.MonkeyPatch.context() as patch:
    asks_to_stop_at(patch, 12)
    assert main(["run", "tiny", *sets(), "--json", "--out", "mine"]) == 130
assert main(["run", "--resume", "--json", "--out", "mine"]) == 0
assert final("mine") == final("straight")

run = trainenv.TrainingRun.from_config(trainenv.RunConfig.load("mine/config.yaml"))
with trainenv.CheckpointStore("apart", moments="exact") as store:
    run.advance(2)
    store.save(run.snapshot())
    run.advance(2)
again = run.fork()
again.restore(trainenv.CheckpointStore("apart").load())
again.advance(2)
assert again.fingerprint() == run.fingerprint()

from trainenv.checkpoints.interop import export
export(run.snapshot(), pathlib.Path("weights.safetensors"))
print("done")
"""


def test_a_run_trains_saves_and_resumes_without_posix(tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "cli")))
    child = subprocess.run(
        [sys.executable, "-c", TRAINS_SAVES_RESUMES],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.splitlines()[-1] == "done"
    assert "no file locks" in child.stderr


def test_no_other_module_calls_what_windows_lacks() -> None:
    lacking = {f"os.{name}" for name in CALLS} | {f"signal.{name}" for name in SIGNALS}
    found = []
    for path in [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names} & MODULES
            else:
                named = {ast.unparse(node)} & lacking if isinstance(node, ast.Attribute) else set()
            allowed = path in (ROOT / PORTABLE, ROOT / SANDBOXED)
            found += [(path.name, name) for name in named if not allowed]
    assert found == []


# ── files ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def without_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pread", "pwrite", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY"):
        monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("without_calls")
def test_a_file_is_written_and_read_at_an_offset(tmp_path: Path) -> None:
    file = portable.open_file(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert portable.write_at(file, b"world", 6) == 5
        assert portable.write_at(file, b"hello ", 0) == 6
        assert portable.read_at(file, 100, 0) == b"hello world"
        assert portable.read_at(file, 3, 6) == b"wor"
        assert portable.read_at(file, 3, 11) == b""
    finally:
        os.close(file)
    portable.sync_file(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"hello world"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT])
def test_a_link_is_not_followed(flags: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    codes = []
    for _ in range(2):
        with pytest.raises(OSError, match="symbolic links") as refused:
            portable.open_file(tmp_path / "link", flags)
        codes.append(refused.value.errno)
        request.getfixturevalue("without_calls")
    assert codes == [errno.ELOOP, errno.ELOOP]
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("without_calls")
def test_a_folder_that_cannot_be_opened_is_not_synced(tmp_path: Path) -> None:
    portable.sync_folder(tmp_path / "none")


def test_a_folder_is_synced(tmp_path: Path) -> None:
    portable.sync_folder(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        portable.sync_folder(tmp_path / "none")


# ── locks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`msvcrt` in the place of `fcntl`, which it locks by; returns the offsets that were locked."""
    offsets: list[int] = []

    def locking(file: int, mode: str, count: int) -> None:
        assert count == 1
        offsets.append(os.lseek(file, 0, os.SEEK_CUR))
        try:
            fcntl.flock(file, fcntl.LOCK_UN if mode == "unlock" else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    monkeypatch.setattr(portable, "_fcntl", None)
    module = SimpleNamespace(locking=locking, LK_NBLCK="lock", LK_UNLCK="unlock")
    monkeypatch.setattr(portable, "_msvcrt", module)
    return offsets


def test_a_folder_is_locked_by_msvcrt(tmp_path: Path, windows: list[int]) -> None:
    one, two = FolderLock(tmp_path), FolderLock(tmp_path)
    one.take()
    assert one.held
    with pytest.raises(
        UserError, match=rf"another CheckpointStore of this same process \({os.getpid()}\)"
    ):
        two.take()
    one.release()
    two.take()
    assert two.held
    two.release()
    assert min(windows) > lock._MOST  # whoever is refused can still read who holds it
    assert len(set(windows)) == 1


def test_without_locks_it_is_said_once_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_fcntl", "_msvcrt"):
        monkeypatch.setattr(portable, name, None)
    monkeypatch.setattr(portable, "HAS_LOCKS", False)
    lock._warn_of_no_locks.cache_clear()
    one, two = FolderLock(tmp_path), FolderLock(tmp_path)
    with pytest.warns(UserWarning, match="would not be noticed; give each run a folder of its own"):
        one.take()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two.take()
        one.release()
        two.release()
    lock._warn_of_no_locks.cache_clear()
