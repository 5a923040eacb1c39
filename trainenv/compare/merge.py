"""Join the shards of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainenv.compare.cells import read, write
from trainenv.compare.runner import alone, begin, cells, check_folder, write_results
from trainenv.compare.shard import SHARD
from trainenv.compare.suite import Suite
from trainenv.types import UserError


def merge(folder: Path, suite: Suite) -> dict[str, Any]:
    """Take over the cells of the shards in a folder, and write `results.json` of all.

    Cells that are missing stay so; the same call takes them over later.

    Args:
        folder: Folder of the comparison, with a folder for each shard; see `Shard.folder`.
        suite: Suite of all of them.

    Returns:
        The content of `results.json`; its `finished` is true if no cell is missing.

    Raises:
        UserError: There is no shard, or the folder or a shard holds another comparison.
    """
    shards = sorted(folder.glob(f"{SHARD}*"))
    if not shards:
        raise UserError(
            f"expected folders of shards in {folder}, found none; give the --out that trainenv "
            "compare --shard had"
        )
    for shard in shards:
        check_folder(shard, suite)
    with alone(folder):
        begin(folder, suite)
        rows = []
        for _, cell in cells(suite):
            row = read(folder, cell)
            for shard in shards:
                if row is None and (found := read(shard, cell)) is not None:
                    row = write(folder, found)
            if row is not None:
                rows.append(row)
        return write_results(folder, suite, rows)
