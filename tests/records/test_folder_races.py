"""Runs that start at once: each has a folder of its own, or is told that it has none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainenv.config.schema import RunConfig
from trainenv.records.run_folder import RunFolder
from trainenv.types import UserError

AT_ONCE = 8


def at_once(start: Callable[[int], Path]) -> list[Path | UserError]:
    """What `start(0)`, `start(1)`, … come to, run side by side."""
    barrier, found = threading.Barrier(AT_ONCE), list[Path | UserError]()

    def work(place: int) -> None:
        barrier.wait()
        try:
            found.append(start(place))
        except UserError as error:
            found.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_each_is_given_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configs = [RunConfig.load("tiny", {"seed": seed}) for seed in range(AT_ONCE)]
    for _ in range(5):
        found = at_once(lambda place: RunFolder.create(None, configs[place]).path)
        assert len({str(path) for path in found}) == AT_ONCE
        seeds = [
            yaml.safe_load((path / "config.yaml").read_text())["seed"]
            for path in found
            if isinstance(path, Path)
        ]
        assert sorted(seeds) == list(range(AT_ONCE))


def test_of_those_that_name_the_same_folder_one_has_it(tmp_path: Path) -> None:
    config = RunConfig.load("tiny")
    for turn in range(5):
        found = at_once(lambda place: RunFolder.create(tmp_path / str(turn), config).path)  # noqa: B023
        assert sum(isinstance(one, Path) for one in found) == 1
        assert all("not empty" in str(one) for one in found if isinstance(one, UserError))


@pytest.mark.parametrize("there", ["file", "broken link"])
def test_runs_that_is_no_folder(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there == "file":
        Path("runs").write_text("1", encoding="utf-8")
    else:
        Path("runs").symlink_to("nowhere")
    with pytest.raises(UserError, match="runs/tiny must be a folder to record in, found: "):
        RunFolder.create(None, RunConfig.load("tiny"))
