"""Train the missing cells of a comparison of weightings over processes; resumable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainenv.checkpoints.lock import NAME as LOCK
from trainenv.checkpoints.lock import FolderLock
from trainenv.compare.cells import write_json
from trainenv.compare.wmtp.cells import (
    Row,
    Stop,
    Task,
    cell_file,
    needs_reference,
    never,
    play,
    read_cell,
    train_reference,
)
from trainenv.compare.wmtp.methods import config_of, flops_of
from trainenv.compare.wmtp.preset import Preset
from trainenv.compare.wmtp.table import table
from trainenv.distributed import JobPool
from trainenv.types import UserError

RESULTS = "results.json"
SETTINGS = "wmtp.json"
_SCHEMA = 1


def compare(
    folder: Path,
    preset: Preset,
    *,
    workers: int = 0,
    progress: Callable[[Row, int, int], None] = lambda row, done, total: None,
    stop: Stop = never,
) -> dict[str, Any]:
    """Train the cells of a preset that are missing in a folder, and write `results.json`.

    The reference of rho1 is trained first, once for all seeds. Each method then spends the FLOPs
    that `uniform` spends in the configured number of steps; what the reference took is in the
    results. Finished cells stay, and interrupted ones resume from their newest checkpoint.

    Args:
        folder: Folder of the comparison.
        preset: Methods, seeds and settings.
        workers: Number of processes, one core each; 0 trains in this process.
        progress: Function called after each cell with its row, the number of cells that are done
            and the number of all.
        stop: Function asked for a request to stop.

    Returns:
        The content of `results.json`, see `trainenv.compare.wmtp.table`.

    Raises:
        UserError: The folder holds another comparison, or the settings do not fit.
    """
    check_folder(folder, preset)
    budget = flops_of(config_of("uniform", preset.run, seed=0))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} must be a folder to compare in, found: {error.strerror}; give another --out"
        ) from None
    lock = FolderLock(folder)
    lock.take()
    try:
        write_json(folder / SETTINGS, _noted(preset))
        return _compared(folder, preset, budget, workers, progress, stop)
    finally:
        lock.release()


def _compared(
    folder: Path,
    preset: Preset,
    budget: float,
    workers: int,
    progress: Callable[[Row, int, int], None],
    stop: Stop,
) -> dict[str, Any]:
    cells = [(seed, method) for seed in range(preset.seeds) for method in preset.methods]
    rows = {cell: row for cell in cells if (row := read_cell(folder, cell[1], cell[0]))}
    waiting = [cell for cell in cells if cell not in rows]
    reference = None
    reference_flops = 0.0
    interrupted = False
    if needs_reference(preset):
        trained = train_reference(preset, folder, stop=stop)
        interrupted = trained is None
        if trained is not None:
            reference, reference_flops = trained

    def note(task: Task, row: Row | None) -> None:
        if row is not None:  # None only where the cell was stopped
            rows[task.seed, task.method] = row
            progress(row, len(rows), len(cells))

    def note_lost(task: Task, reason: str) -> None:
        row = {"method": task.method, "seed": task.seed, "ended": "failed", "error": reason}
        write_json(cell_file(folder, task.method, task.seed), row)
        note(task, row)

    tasks = [
        Task(
            method=method,
            seed=seed,
            preset=preset,
            budget=budget,
            folder=folder,
            reference=reference,
        )
        for seed, method in waiting
    ]
    if not interrupted and workers:
        with JobPool(play, workers=workers) as pool:
            pool.run(tasks, note, note_lost, stop)
    elif not interrupted:
        for task in tasks:
            if stop():
                break
            note(task, play(task, stop))
    found = {
        "name": preset.name,
        "preset": preset.to_json(),
        "budget": budget,
        "reference_flops": reference_flops,
        "finished": len(rows) == len(cells),
        **table([rows[cell] for cell in cells if cell in rows], preset.methods),
        "rows": [rows[cell] for cell in cells if cell in rows],
    }
    write_json(folder / RESULTS, found)
    return found


def check_folder(folder: Path, preset: Preset) -> None:
    """Check that a folder can hold the cells of a preset; nothing is written.

    Raises:
        UserError: The folder holds something else, or a comparison with other settings.
    """
    path = folder / SETTINGS
    if path.is_file():
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            noted = {}
        asked = _noted(preset)
        # Other methods and more seeds may be added to a comparison.
        if any(noted.get(key) != asked[key] for key in asked if key not in ("methods", "seeds")):
            raise UserError(f"{folder} holds a comparison with other settings; give another --out")
    elif folder.is_dir() and any(one.name != LOCK for one in folder.iterdir()):
        raise UserError(
            f"expected an empty folder or a comparison of weightings, found other files in "
            f"{folder}; give another --out"
        )


def _noted(preset: Preset) -> dict[str, Any]:
    """Return the settings as they are read from a file."""
    noted: dict[str, Any] = json.loads(json.dumps({"schema": _SCHEMA, **preset.to_json()}))
    return noted
