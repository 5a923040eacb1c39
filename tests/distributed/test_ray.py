"""Ray with two simulated nodes: the bits of local pools, through processes and nodes that die."""

from __future__ import annotations

import gc
import os
import signal
import socket
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import compare_fakes, ray_jobs, run_settings
from tests.support.pool_jobs import describe, die_of_some
from trainenv.cli import main
from trainenv.compare import compare
from trainenv.compare.suite import Suite
from trainenv.config.schema import BranchingConfig, RunConfig
from trainenv.distributed import job_pool, ray_cluster
from trainenv.distributed.executors import check_executor
from trainenv.rollouts import pool, remote
from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.run import TrainingRun
from trainenv.tools import optional
from trainenv.types import Intervention, Outcome, Telemetry, UserError

SMALL: dict[str, Any] = run_settings.SMALL | {
    "steps": 48,
    "block_steps": 2,
    "validation": {"every": 0, "sequences": 4},
}
LOWER = (Intervention(lr_scale=0.5),)
RESET = (Intervention(), Intervention(momentum_reset=True, clip="zclip", data_reorder=True))


class TwoNodes:
    """The Ray that `--executor ray` starts here, and a second node that can be killed."""

    def __init__(self) -> None:
        self.ray: Any = ray_cluster.connected("ray", workers=1)
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(shutdown_at_exit=False)
        self._cluster.head_node = self.ray._private.worker._global_node
        self._second: Any = None

    def complete(self) -> None:
        """Start the second node if there is none."""
        if self._second is None:
            self._second = self._cluster.add_node(num_cpus=1, include_dashboard=False)

    def kill_second(self) -> None:
        """Kill all processes of the second node."""
        node, self._second = self._second, None
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """End both nodes."""
        if self._second is not None:
            self.kill_second()
        self.ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    """Both nodes, started once, for that takes seconds."""
    if not optional.is_installed("ray"):
        pytest.skip("ray is not installed")
    nodes = TwoNodes()
    yield nodes
    nodes.close()


@pytest.fixture
def nodes(cluster: TwoNodes) -> TwoNodes:
    cluster.complete()
    return cluster


@pytest.fixture(scope="module")
def run() -> Iterator[TrainingRun]:
    run = TrainingRun.from_config("tiny", SMALL)
    run.advance(10)
    yield run
    remote.dismiss(run)


def suite() -> Suite:
    whole = compare_fakes.suite(methods=["trained", "dies-once"], seeds=1)
    return whole.select(scenarios=["calm", "high"])


METHODS = {"trained": ray_jobs.trained, "dies-once": ray_jobs.dies_once}
UNHARMED = {"trained": ray_jobs.trained, "dies-once": ray_jobs.trained}


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{key: row[key] for key in row if key != "seconds"} for row in found["rows"]]
    return sorted(rows, key=lambda row: (row["scenario"], row["method"]))


def outcomes(run: TrainingRun, workers: int, executor: str = "local", **more: Any) -> list[Outcome]:
    settings = {"decision_steps": 5, "cooldown": 6, "fold": False} | more
    rollouts = Rollouts(run, **settings, workers=workers, executor=executor)
    return rollouts.run([NOTHING, RESET, LOWER], 12, measure="annealed")


# ── what cannot be ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_ray_a_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optional, "is_installed", lambda package: package != "ray")
    assert main(["compare", "quick", "--executor", "ray", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "executor ray needs the package ray, found none; pip install 'trainenv[ray]'" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not optional.is_installed("ray"), reason="ray is not installed")
@pytest.mark.parametrize("kind", ["closed", "silent", "another"])
def test_an_address_that_does_not_answer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_PATIENCE", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if kind != "closed":
            listener.listen()
        if kind == "another":
            speak_otherwise(monkeypatch)
        with pytest.raises(UserError, match=f"expected a Ray cluster at {address}, found "):
            ray_cluster._check_answers(address)


def speak_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the other side of connections answer as a web server of the old kind does."""

    class Web:
        def __enter__(self) -> Web:
            return self

        def __exit__(self, *raised: object) -> None: ...
        def settimeout(self, seconds: float) -> None: ...
        def sendall(self, data: bytes) -> None: ...
        def recv(self, size: int) -> bytes:
            return b"HTTP/1.1 400 Bad Request"[:size]

    monkeypatch.setattr(socket, "create_connection", lambda *given: Web())


@pytest.mark.parametrize("executor", ["slurm", "ray://", "ray://host", "ray://host:port", "Ray"])
def test_an_executor_that_is_none(executor: str) -> None:
    expected = "executor must be local, ray or ray://HOST:PORT, found "
    with pytest.raises(UserError, match=expected):
        check_executor(executor, 2)
    with pytest.raises(UserError, match=expected):
        RunConfig.load("tiny", {"branching.executor": executor})


def test_a_cluster_without_workers_is_a_mistake() -> None:
    with pytest.raises(UserError, match="executor ray needs 1 worker or more, found 0"):
        check_executor("ray", 0)
    assert BranchingConfig().executor == "local"


@pytest.mark.parametrize(
    ("stated", "address"), [("", None), ("local", None), ("auto", "auto"), ("host:1", "host:1")]
)
def test_the_address_of_the_environment_is_read_as_ray_reads_it(
    stated: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", stated)
    assert ray_cluster._address("ray") == address
    assert ray_cluster._address("ray://other:2") == "other:2"


def test_a_worker_that_finds_no_core_is_named_in_the_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoCore:
        exitcode = None

        def __init__(self, *given: Any, **how: Any) -> None: ...
        def send(self, message: Any) -> None: ...
        def end(self) -> None: ...
        def receive(self) -> Any:
            raise EOFError("a worker of the cluster did not answer in 120 s; see if a core is free")

    monkeypatch.setattr(pool, "RayPeer", NoCore)
    monkeypatch.setattr(pool, "cores", lambda executor, workers: workers)
    workers = pool.Workers(RunConfig.load("tiny", SMALL), 1, "ray")
    with pytest.raises(UserError, match=r"can't be started \(.* did not answer .* core is free\)"):
        workers.ready({})


# ── two nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_listens_beyond_loopback(nodes: TwoNodes) -> None:
    here = psutil.Process()
    processes = [here, *here.children(recursive=True)]
    # Processes of the nodes have other parents once these have started them.
    session = nodes.ray._private.worker._global_node.get_session_dir_path()
    for process in psutil.process_iter(["cmdline"]):
        if any(session in word for word in process.info["cmdline"] or ()):
            processes.append(process)
    heard = set()
    for process in processes:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        heard |= {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
    assert heard
    assert {ip.removeprefix("::ffff:") for ip in heard} <= {"127.0.0.1", "::1"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not nodes.ray._private.worker._global_node.webui_url


def test_jobs_are_done_on_one_thread_and_tried_again(nodes: TwoNodes, tmp_path: Path) -> None:
    done: list[Any] = []
    lost: dict[str, str] = {}
    with job_pool(describe, executor="ray", workers=2) as jobs:
        assert not jobs.run(range(4), lambda job, result: done.append(result), pytest.fail)
    assert sorted(one["job"] for one in done) == [0, 1, 2, 3]
    assert {(one["threads"], one["omp"]) for one in done} == {(1, "1")}
    names: list[str] = []
    with job_pool(die_of_some, executor="ray", workers=1) as jobs:
        jobs.run(
            [(name, tmp_path) for name in ["once", "always", "raises", "last"]],
            lambda job, result: names.append(result),
            lambda job, reason: lost.update({job[0]: reason}),
        )
    assert names == ["once", "last"]
    assert lost["always"].endswith(", 2 times")
    assert lost["raises"] == "the process ended: ZeroDivisionError: by hand, 2 times"
    assert (tmp_path / "deaths").read_text() == "xx"


def test_a_stopped_job_cleans_up_on_a_cluster(nodes: TwoNodes, tmp_path: Path) -> None:
    with job_pool(ray_jobs.clean_up_when_cancelled, executor="ray", workers=1) as jobs:
        assert jobs.run(
            [tmp_path], pytest.fail, pytest.fail, stop=lambda: (tmp_path / "started").exists()
        )
    assert (tmp_path / "cleaned").exists()


def test_a_comparison_has_the_same_bits_through_a_killed_worker_and_node(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    """The first process of one method is killed; after the first cell, a node dies."""
    locally = compare(tmp_path / "local", suite(), UNHARMED, compare_fakes.measure, workers=0)
    killed = []

    def kill_a_node(progress: object) -> None:
        if not killed:
            killed.append(True)
            nodes.kill_second()

    found = compare(
        tmp_path / "ray",
        suite(),
        METHODS,
        compare_fakes.measure,
        workers=2,
        executor="ray",
        progress=kill_a_node,
    )
    assert killed
    assert found["finished"]
    assert {row["ended"] for row in found["rows"]} == {"budget spent"}
    assert rows_of(found) == rows_of(locally)


def test_a_verification_has_the_same_bits(
    run: TrainingRun, nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sends the snapshot of three branches once, and leaves nothing in the object store."""
    shared: list[object] = []

    class Counted(pool.Shared):
        def __init__(self, value: object, **how: Any) -> None:
            shared.append(value)
            super().__init__(value, **how)

    monkeypatch.setattr(pool, "Shared", Counted)
    counts = nodes.ray._private.worker.global_worker.core_worker.get_all_reference_counts
    in_turn = outcomes(run, 0)
    assert list(map(repr, outcomes(run, 2, "ray"))) == list(map(repr, in_turn))
    assert len(shared) == 1
    gc.collect()
    before = len(counts())
    outcomes(run, 2, "ray")
    gc.collect()
    assert len(counts()) <= before


@pytest.mark.parametrize("victim", ["worker", "node"])
def test_a_verification_has_the_same_bits_through_a_death(
    victim: str, run: TrainingRun, nodes: TwoNodes
) -> None:
    in_turn = outcomes(run, 0)
    outcomes(run, 2, "ray")  # replaces those that another test has killed
    workers = remote._kept[run]
    assert workers is not None
    struck = []

    def strike(future: Sequence[Telemetry], control: Sequence[Telemetry]) -> str:
        if not struck:
            struck.append(victim)
            if victim == "node":
                nodes.kill_second()
            else:
                os.kill(workers._workers[0].pid or 0, signal.SIGKILL)
        return ""

    with pytest.warns(UserWarning, match="a worker of the cluster ended: what it trained is"):
        found = outcomes(run, 2, "ray", stopping=strike)
    assert struck
    assert list(map(repr, found)) == list(map(repr, in_turn))


def test_a_cluster_that_can_not_be_joined_is_trained_without(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a decision: with a warning, and the same bits."""
    remote.dismiss(run)
    monkeypatch.setattr(optional, "is_installed", lambda package: package != "ray")
    with pytest.warns(UserWarning, match="branches are trained in turn: executor ray needs"):
        found = outcomes(run, 2, "ray")
    with warnings.catch_warnings():
        assert list(map(repr, found)) == list(map(repr, outcomes(run, 0)))
    remote._kept.pop(run, None)
