"""Jobs over processes: each is done once, dead processes are replaced, nothing is left running."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tests.support.pool_jobs import NeverThere, clean_up_at_the_end, describe, die_of_some
from trainenv.distributed import JobPool
from trainenv.types import UserError


def unexpected(job: object, reason: str) -> None:
    pytest.fail(f"{job} was lost: {reason}")


def test_all_jobs_are_done_on_one_thread_each() -> None:
    done: dict[int, Any] = {}
    with JobPool(describe, workers=2) as pool:
        assert not pool.run(range(6), lambda job, result: done.update({job: result}), unexpected)
        assert not pool.run([6], lambda job, result: done.update({job: result}), unexpected)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []
    assert sorted(done) == list(range(7))
    assert all(result["job"] == job for job, result in done.items())
    assert {(result["threads"], result["omp"]) for result in done.values()} == {(1, "1")}
    assert done[6]["pid"] in {done[job]["pid"] for job in range(6)}


@pytest.mark.parametrize("tries", [1, 2])
def test_a_job_that_costs_its_processes_is_reported(
    tries: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["first", "once", "always", "raises", "last"]
    done: list[str] = []
    lost: dict[str, str] = {}
    with JobPool(die_of_some, workers=1, tries=tries) as pool:
        pool.run(
            [(name, tmp_path) for name in names],
            lambda job, result: done.append(result),
            lambda job, reason: lost.update({job[0]: reason}),
        )
    again = ", 2 times" if tries == 2 else ""
    assert done == (["first", "once", "last"] if tries == 2 else ["first", "last"])
    assert lost["always"] == f"the process ended with exit code 7{again}"
    assert lost["raises"] == f"the process ended with exit code 1{again}"
    assert lost.get("once") == (None if tries == 2 else "the process ended with exit code -9")
    assert (tmp_path / "deaths").read_text() == "x" * tries
    assert "ZeroDivisionError: by hand" in capfd.readouterr().err


def test_processes_that_never_start_are_a_mistake() -> None:
    with (
        pytest.raises(UserError, match=r"found 3 in a row that ended first \(exit code 3\)"),
        JobPool(NeverThere(), workers=1) as pool,
    ):
        pool.run(range(5), lambda job, result: None, unexpected)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("daemon", [False, True])
def test_a_stopped_job_cleans_up(daemon: bool, tmp_path: Path) -> None:
    with JobPool(clean_up_at_the_end, workers=1, daemon=daemon) as pool:
        stopped = pool.run(
            [tmp_path],
            lambda job, result: None,
            unexpected,
            stop=lambda: (tmp_path / "started").exists(),
        )
        assert [child.daemon for child in multiprocessing.active_children()] == [daemon]
    assert stopped
    assert (tmp_path / "cleaned").exists()
    assert multiprocessing.active_children() == []
