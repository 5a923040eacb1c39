"""The folder of one run: configuration, telemetry, events, checkpoints and the summary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainenv.checkpoints import FOLDER
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import CheckpointConfig, TrainingConfig
from trainenv.config.written import as_yaml
from trainenv.records.lineage import last_saved
from trainenv.records.live_log import LiveLog
from trainenv.records.observer import Observer, Observers
from trainenv.records.telemetry_log import TelemetryLog
from trainenv.tools.atomic_files import write_json
from trainenv.tools.json_lines import append_line, read_lines
from trainenv.tools.paths import expanded
from trainenv.types import Event, Run, Snapshot, Telemetry, UserError

# Parts of a checkpoint: the number of rewinds before it, missing if there were none, and the state
# of the callback as JSON. The second key is the old name of a callback.
REWINDS = "rewinds"
CALLBACK_STATE = "responder"


class RunFolder:
    """Files of a run.

    | file | holds |
    |---|---|
    | `config.yaml` | the whole configuration |
    | `telemetry/part-*.parquet` | one row for each optimizer step, see `configs/log_schema.json` |
    | `events.jsonl` | one JSON object for each event, in order |
    | `validation.jsonl` | step, line and validation loss |
    | `full_validation.jsonl` | the same for evaluations of the whole validation part, if any |
    | `lines.jsonl` | each line of the lineage: number, first step, rewinds before it |
    | `checkpoints/cp_STEP.ptz` | the state at a step, to resume from |
    | `checkpoints/made_of.json` | parts that the run is trained with, see `records.made_of` |
    | `processes.jsonl` | command, versions and time of each process, see `records.processes` |
    | `live.jsonl` | heartbeat and newest steps while the run trains, see `records.live_log` |
    | `summary.json` | the result; written when the run has ended |
    | `parent.json` | the state that a fork starts from, see `records.continuation` |

    Args:
        path: Path of the folder.
        line: Number of the present line of the lineage.
        rewinds: Number of rewinds so far.

    Attributes:
        telemetry: Log of the telemetry.
        flags: Arguments of `trainenv run` that make the callback.
        changes: Changes since the run was saved, in words; None if they are not known.
    """

    def __init__(self, path: Path, line: int = 0, rewinds: int = 0) -> None:
        self.path = path
        self.line = line
        self.rewinds = rewinds
        self.telemetry = TelemetryLog(path / "telemetry")
        self._observers = Observers()
        self.flags: tuple[str, ...] = ()
        self.changes: tuple[str, ...] | None = ()
        # For a resumed run: digests of the checkpoints when it was read.
        self._resumed: list[str] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, line {self.line})"

    @classmethod
    def create(cls, path: str | Path | None, config: TrainingConfig) -> RunFolder:
        """Make a new folder: `path`, or the first free one of `runs/NAME`, `runs/NAME-2`, …

        Two processes never get the same one.

        Raises:
            UserError: `path` holds something already, or cannot be written.
        """
        wanted = Path("runs") / config.name if path is None else expanded(path)
        try:
            if path is None:
                folder = _made_first(wanted)
            else:
                folder = wanted
                folder.mkdir(parents=True, exist_ok=True)
            occupied = any(folder.iterdir())
        except OSError as error:
            raise UserError(
                f"{wanted} must be a folder to record in, found: {error.strerror}; "
                "give another --out"
            ) from None
        text = as_yaml(config)
        try:
            if not occupied:
                with (folder / "config.yaml").open("x", encoding="utf-8") as file:
                    file.write(text)
        except FileExistsError:  # another process has just started there
            occupied = True
        except OSError as error:
            raise UserError(
                f"{folder} must be a folder to record in, found: {error.strerror}; "
                "give another --out"
            ) from None
        if occupied:
            raise UserError(
                f"{folder} is not empty; give another --out, or --resume to continue the run in it"
            )
        return cls(folder)

    @classmethod
    def resume(cls, path: str | Path, *, at_most: int | None = None) -> tuple[RunFolder, Snapshot]:
        """Return the folder of an interrupted run, and its newest whole checkpoint.

        Nothing is written yet.

        Args:
            path: Path of the folder.
            at_most: Largest step of the checkpoint; None for any.

        Raises:
            UserError: There is nothing to resume, or the run has ended.
        """
        path = expanded(path)
        if (path / "summary.json").is_file():
            raise UserError(
                f"the run in {path} has ended; give --steps N with --resume to extend it, or"
                " another --out for a new one"
            )
        store = CheckpointStore(path / FOLDER)
        if not store.folder.is_dir() or not store.steps():
            sentence = (
                f"expected an interrupted run with checkpoints in {path}, found none; "
                "leave out --resume to start one"
            )
            if (path / "config.yaml").is_file():
                sentence += " and delete the folder: the run in it stopped before its first one"
            raise UserError(sentence)
        digests = _digests(store)
        step = None
        if at_most is not None:
            before = [one for one in store.steps() if one <= at_most]
            if not before:
                raise UserError(
                    f"expected a checkpoint of step {at_most} or before in {path}, found the first "
                    f"one at step {min(store.steps())}; resume from a later step"
                )
            step = max(before)
        snapshot = store.load(step)
        return cls._continued(path, int(snapshot.state.get(REWINDS, 0)), digests), snapshot

    @classmethod
    def continued(cls, path: str | Path, *, rewinds: int) -> RunFolder:
        """Return the folder of an interrupted run whose state was saved elsewhere.

        Nothing is written yet.

        Args:
            path: Path of the folder.
            rewinds: Number of rewinds before the state that the run is resumed from.

        Raises:
            UserError: There is no run, or it has ended.
        """
        path = expanded(path)
        if (path / "summary.json").is_file():
            raise UserError(f"the run in {path} has ended; give another out for a new one")
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"expected the records of the run that is resumed in {path}, found none; "
                "give the out folder that it had"
            )
        return cls._continued(path, rewinds, _digests(CheckpointStore(path / FOLDER)))

    @classmethod
    def _continued(cls, path: Path, rewinds: int, digests: list[str]) -> RunFolder:
        lines = [record["line"] for record in read_lines(path / "lines.jsonl")]
        folder = cls(path, line=max(lines, default=0), rewinds=rewinds)
        folder._resumed = digests
        return folder

    @contextmanager
    def recording(
        self,
        step: int,
        config: CheckpointConfig,
        store_of: Callable[..., CheckpointStore] = CheckpointStore,
    ) -> Iterator[CheckpointStore]:
        """Open the checkpoint store of the run; inside the block only this process records here.

        A resumed run starts a new line at `step`.

        Args:
            step: Step of the run.
            config: Settings of the store.
            store_of: Class of the store, or a function of its arguments.

        Raises:
            UserError: Another process records here, or has continued the run since it was read.
        """
        with store_of(self.path / FOLDER, **config.model_dump()) as store:
            if self._resumed is not None:
                if _digests(store) != self._resumed:
                    raise UserError(
                        f"expected the run in {self.path} as it was read, found that another "
                        "process has continued it; resume it again"
                    )
                self._resumed = None
                self._new_line(step)
            yield store

    @contextmanager
    def observed(self, run: Run, observers: Sequence[Observer]) -> Iterator[Callable[[Any], None]]:
        """Pass on what is recorded inside the block to observers, and to the log for watchers.

        Yields:
            A function that takes the summary of the run, once it is known.
        """
        summaries = list[Mapping[str, Any]]()
        self._observers.start(run, self, [LiveLog(), *observers])
        try:
            yield summaries.append
        finally:
            self._observers.finish(next(iter(summaries), None))

    def steps(self, window: Sequence[Telemetry]) -> None:
        """Record trained steps of the present line."""
        self.telemetry.append(window, line=self.line)
        if window:
            self._observers.steps(window, self.line)

    def rewound(self, step: int) -> None:
        """Note that the run went back to `step`; a new line starts there."""
        self.rewinds += 1
        self._new_line(step)

    def _new_line(self, step: int) -> None:
        self.line += 1
        append_line(
            self.path / "lines.jsonl", {"line": self.line, "step": step, "rewinds": self.rewinds}
        )

    def event(self, event: Event) -> None:
        """Append an event to the file at once, so that a crash cannot lose it."""
        record = {"line": self.line, **asdict(event)}
        append_line(self.path / "events.jsonl", record)
        self._observers.event(record)

    def validation(self, step: int, loss: float) -> None:
        """Append a validation loss, nats per token."""
        self._loss("validation", step, loss)

    def full_validation(self, step: int, loss: float) -> None:
        """Append the loss of the whole validation part, nats per token."""
        self._loss("full_validation", step, loss)

    def _loss(self, kind: str, step: int, loss: float) -> None:
        record = {"line": self.line, "step": step, "loss": loss}
        append_line(self.path / f"{kind}.jsonl", record)
        self._observers.event({"kind": kind, **record})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the rest of the telemetry, and the summary that marks the run as ended."""
        self.telemetry.flush()
        write_json(self.path / "summary.json", summary, indent=2)


def _digests(store: CheckpointStore) -> list[str]:
    return [entry.digest for entry in store.entries()]


def _made_first(path: Path) -> Path:
    """Make the first of `path`, `path-2`, `path-3`, … that does not exist, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2)))
    for name in names:
        free = path.with_name(name)
        try:
            free.mkdir()
        except FileExistsError:
            continue
        return free
    raise AssertionError("there is always another number")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events in a run's folder, in order, without those that a kill has lost."""
    return without_lost(read_lines(path / "events.jsonl"), read_lines(path / "lines.jsonl"))


def without_lost(
    events: Iterable[dict[str, Any]], begun: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the events of saved steps, in order.

    Args:
        events: Records of `events.jsonl`.
        begun: Records of `lines.jsonl`.
    """
    saved = last_saved(begun)
    return [event for event in events if _at(event) <= saved.get(event.get("line", 0), math.inf)]


def _at(event: Mapping[str, Any]) -> float:
    """Return the step of its line that an event belongs to; for a rewind the one it went back to.

    The `step` of a rewind is the one that it left, on the line before.
    """
    step = event.get("step", -math.inf)
    if event.get("kind") == "rewind":
        step = (event.get("detail") or {}).get("to", step)
    if isinstance(step, int | float):
        return float(step)
    return -math.inf  # not of ours: whoever reads it decides


def read_validation(path: Path) -> list[dict[str, Any]]:
    """Return line, step and loss of each validation in a run's folder, in order."""
    return read_lines(path / "validation.jsonl")


def read_full_validation(path: Path) -> list[dict[str, Any]]:
    """Return line, step and loss of each evaluation of the whole validation part, in order."""
    return read_lines(path / "full_validation.jsonl")
