"""Processes that save and end in various ways: each a child of one server, so that torch is imported once.

    python endings.py FOLDER

writes into FOLDER a subfolder a scenario, and one JSON object: scenario → its exit status (negative for a signal), and what it
wrote to the standard error stream.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.small_runs import made
from trainenv.checkpoints.store import CheckpointStore
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import UserError


class Slow(Disk):
    """Takes its time before a file is there."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def sync(self, file: int) -> None:
        self.begun.set()
        time.sleep(0.3)
        super().sync(file)


class Full(Disk):
    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def begun(folder: Path) -> tuple[CheckpointStore, Slow]:
    """A store that has saved step 1 and is about to save step 2, slowly."""
    CheckpointStore(folder).save(made(1), wait=True)
    disk = Slow()
    return CheckpointStore(folder, disk=disk), disk


def ends_without_waiting(folder: Path) -> None:
    store, _ = begun(folder)
    store.save(made(2))


def raises_inside_with(folder: Path) -> None:
    store, _ = begun(folder)
    with store:
        store.save(made(2))
        raise RuntimeError("the training failed")


def interrupted_while_waiting(folder: Path) -> None:
    store, disk = begun(folder)
    with store:
        store.save(made(2))
        assert disk.begun.wait(10)
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        store.wait()


def interrupted_at_the_end_of_with(folder: Path) -> None:
    """Whoever presses Ctrl-C once more: the lock stays until what it protects has ended."""
    store, disk = begun(folder)
    try:
        with store:
            store.save(made(2))
            assert disk.begun.wait(10)
            threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    except KeyboardInterrupt:
        try:
            CheckpointStore(folder).save(made(3))
        except UserError as refused:
            sys.stderr.write(str(refused))


def sigterm_inside_with(folder: Path) -> None:
    store, disk = begun(folder)
    with store:
        store.save(made(2))
        assert disk.begun.wait(10)
        terminate()
        time.sleep(60)


def sigterm_while_waiting(folder: Path) -> None:
    store, disk = begun(folder)
    with store:
        store.save(made(2))
        assert disk.begun.wait(10)
        threading.Timer(0.05, terminate).start()
        store.wait()
        time.sleep(60)


def sigterm_at_the_end_of_with(folder: Path) -> None:
    store, disk = begun(folder)
    try:
        with store:
            store.save(made(2))
            assert disk.begun.wait(10)
            threading.Timer(0.05, terminate).start()
        time.sleep(60)
    except SystemExit:
        CheckpointStore(folder).hold(2, "it has been saved, and the lock is free")
        raise


def sigterm_twice(folder: Path) -> None:
    store, disk = begun(folder)
    with store:
        store.save(made(2))
        assert disk.begun.wait(10)
        threading.Timer(0.05, terminate).start()
        terminate()
        time.sleep(60)


def sigterm_after_with(folder: Path) -> None:
    with CheckpointStore(folder) as store:
        store.save(made(1))
    terminate()
    time.sleep(60)


def sigterm_without_with(folder: Path) -> None:
    store, disk = begun(folder)
    store.save(made(2))
    assert disk.begun.wait(10)
    terminate()
    time.sleep(60)


def sigterm_with_a_handler_of_ones_own(folder: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    with CheckpointStore(folder) as store:
        store.save(made(1))
        terminate()
        time.sleep(60)


def sigterm_in_a_forked_child(folder: Path) -> None:
    """The child has no block to unwind: SIGTERM ends it as it would without a store."""
    with CheckpointStore(folder) as store:
        store.save(made(1), wait=True)
        child = os.fork()
        if not child:
            terminate()
            time.sleep(60)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        store.save(made(2))


def failure_that_nobody_asks_about(folder: Path) -> None:
    CheckpointStore(folder).save(made(1), wait=True)
    store = CheckpointStore(folder)
    store.hold(1, "opens the folder while the disk is well")
    store._writer._disk = Full()
    store.save(made(2))


def forked_child_only_reads(folder: Path) -> None:
    """Says on standard error what the child may do."""
    with CheckpointStore(folder) as store:
        store.save(made(1))  # under way, or not, when the process forks
        child = os.fork()
        if not child:
            while not store.steps():
                time.sleep(0.01)  # its parent is saving; it reads what is on the disk
            told = {"loads": store.load().step}
            for what, act in {
                "save": lambda: store.save(made(2)),
                "collect": store.collect,
                "hold": lambda: store.hold(1, "x"),
            }.items():
                try:
                    act()
                except Exception as error:
                    told[what] = f"{type(error).__name__}: {error}"
            store.close()
            sys.stderr.write(json.dumps(told))
            sys.stderr.flush()
            sys.exit(0)  # leaves the with block in the child
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store.save(made(3), wait=True)  # still the writer


SCENARIOS: tuple[Callable[[Path], None], ...] = (
    *(
        ends_without_waiting,
        raises_inside_with,
        interrupted_while_waiting,
        interrupted_at_the_end_of_with,
    ),
    *(
        sigterm_inside_with,
        sigterm_while_waiting,
        sigterm_at_the_end_of_with,
        sigterm_twice,
        sigterm_after_with,
    ),
    *(
        sigterm_without_with,
        sigterm_with_a_handler_of_ones_own,
        sigterm_in_a_forked_child,
        failure_that_nobody_asks_about,
    ),
    forked_child_only_reads,
)


def main() -> None:
    folder = Path(sys.argv[1])
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it for what runs in its background
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # or each child would go through all that torch has made when it ends
    words = {scenario: folder / f"{scenario.__name__}.stderr" for scenario in SCENARIOS}
    children = {}
    for scenario in SCENARIOS:
        child = os.fork()
        if not child:
            # From here on it is a process like any other, which ends as the interpreter ends.
            os.dup2(os.open(words[scenario], os.O_WRONLY | os.O_CREAT), 2)
            scenario(folder / scenario.__name__)
            return
        children[scenario] = child
    told = {}
    for scenario, child in children.items():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told[scenario.__name__] = {"status": status, "stderr": words[scenario].read_text()}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
