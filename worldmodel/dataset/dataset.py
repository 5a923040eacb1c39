"""A data set of branches, read back as tables and arrays.

data = Dataset.open("branches")
data.branches                                   # a row a branch, see configs/branches_schema.json
data.windows(["loss", "grad_norm", "lr"])       # [snapshots, 64, 3]: telemetry before each
data.arrays().actions                           # [branches, 4, 6]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainenv.interventions import PARTS
from trainenv.types import CLIP_NAMES, UserError
from trainenv.worldmodel.dataset import schema
from trainenv.worldmodel.dataset.design import DECISIONS, LOOKS, Design
from trainenv.worldmodel.dataset.store import Shards

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
CLIPS = ("keep", *CLIP_NAMES)
_DECIDED = (*PARTS[:-1], "propensity", "wide")  # data sets have no emphasis


@dataclass(frozen=True, eq=False)
class Arrays:
    """n branches as numbers, in the order of `Dataset.branches`.

    Losses are in nats per token, NaN where unmeasured.

    Attributes:
        trunk: [n] rows of the trunks in `Dataset.trunks`.
        snapshot: [n] rows of the snapshots in `Dataset.snapshots`, and in what `windows` returns.
        actions: [n, 4, 6] actions of each decision: ln lr_scale, ln weight_decay_scale, place of
            the policy in `CLIPS`, reset, reorder, skip; 0 where nothing was done.
        taken: [n, 4] flags: the branch reached the decision.
        propensity: [n, 4] probabilities of the interventions; where `wide`, densities per unit of
            ln lr_scale.
        wide: [n, 4] flags: the intervention is a learning-rate factor of the family *rate*.
        validation: [n, 9] clean validation losses at the start and after each eighth of the
            horizon.
        annealed: [n] validation losses after the reference cool-down.
        final: [n] validation losses at the end of the schedule; also NaN where the branch did not
            run to the end.
        diverged: [n] flags: the branch diverged within the horizon.
        recovery: [n] steps until the branch had recovered, or observed steps if it had not.
        recovered: [n] flags; False: `recovery` is right-censored.
    """

    trunk: Ints
    snapshot: Ints
    actions: Floats
    taken: Flags
    propensity: Floats
    wide: Flags
    validation: Floats
    annealed: Floats
    final: Floats
    diverged: Flags
    recovery: Ints
    recovered: Flags


class Dataset:
    """All shards of a folder. The small tables are in memory; telemetry is read trunk by trunk.

    Attributes:
        design: Design of the branches.
        trunks: Data frame of the trunks, in order.
        snapshots: Data frame of the snapshots, in order.
        branches: Data frame of the branches, in order.
    """

    def __init__(
        self,
        shards: Shards,
        design: Design,
        trunks: pd.DataFrame,
        snapshots: pd.DataFrame,
        branches: pd.DataFrame,
    ) -> None:
        self._shards = shards
        self.design = design
        self.trunks = trunks
        self.snapshots = snapshots
        self.branches = branches
        self._telemetry = lru_cache(maxsize=2)(self._read_telemetry)

    @classmethod
    def open(cls, folder: str | Path) -> Dataset:
        """Open the data set in a folder, finished or not.

        Raises:
            UserError: There is no data set, it is empty, or a shard is torn, foreign or
                inconsistent.
        """
        shards = Shards(Path(folder))
        design = shards.design()
        names = shards.names()
        if not names:
            raise UserError(f"expected shards in {folder}, found none yet; continue to build it")
        tables: dict[str, list[pa.Table]] = {
            table: [] for table in ("trunks", "snapshots", "branches")
        }
        for name in names:
            for table, read in tables.items():
                read.append(shards.table(name, table))
            _check(name, *(read[-1] for read in tables.values()))
        return cls(
            shards, design, *(pa.concat_tables(read).to_pandas() for read in tables.values())
        )

    def verify(self) -> None:
        """Read all files, telemetry included.

        Raises:
            UserError: A file is torn or foreign, or steps are missing in it.
        """
        keys = ["snapshot", "branch"]
        for trunk in self.trunks["trunk"]:
            steps = self.branch_steps(trunk)
            counted = steps[steps["phase"] == "branch"].groupby(keys).size()
            branches = self.branches[self.branches["trunk"] == trunk]
            expected = branches.set_index(keys)["steps"]
            trained = self.trunk_steps(trunk)["step"].to_numpy()
            consecutive = np.array_equal(trained, 1 + np.arange(len(trained)))
            if not consecutive or not counted.equals(expected[expected > 0]):
                raise UserError(
                    f"expected the telemetry of every step of {trunk}, found other steps; "
                    f"{schema.REMEDY}"
                )

    def trunk_steps(self, trunk: str) -> pd.DataFrame:
        """Return the telemetry of a trunk, a row a step."""
        return self._telemetry(trunk, "trunk_steps")

    def branch_steps(self, trunk: str) -> pd.DataFrame:
        """Return the telemetry of a trunk's branches, a row a step.

        Rows are sorted by snapshot, branch and phase, in the order of steps.
        """
        return self._telemetry(trunk, "branch_steps")

    def windows(self, columns: Sequence[str], steps: int = 64) -> Floats:
        """Return the telemetry before each snapshot.

        Args:
            columns: Columns of the telemetry, numbers and flags only.
            steps: Number of steps before the snapshot.

        Returns:
            [snapshots, steps, columns], float64; NaN before the first step and where nothing was
            measured.

        Raises:
            UserError: There is no such column, or it holds no numbers.
        """
        numbers = [
            field.name for field in schema.arrow_schema("trunk_steps") if not _is_text(field.type)
        ]
        if wrong := [name for name in columns if name not in numbers]:
            raise UserError(
                f"columns of a window must be among {', '.join(numbers)}, found {wrong[0]!r}; "
                "choose others"
            )
        windows = np.full((len(self.snapshots), steps, len(columns)), math.nan)
        for trunk, rows in self.snapshots.groupby("trunk", sort=False).indices.items():
            telemetry = self.trunk_steps(str(trunk))[list(columns)].to_numpy(dtype=np.float64)
            for row in rows:
                step = int(self.snapshots["step"].iloc[row])
                window = telemetry[max(0, step - steps) : step]
                windows[row, steps - len(window) :] = window
        return windows

    def arrays(self) -> Arrays:
        """Return the branches as numbers."""
        branches = self.branches
        trunk_rows = {name: row for row, name in enumerate(self.trunks["trunk"])}
        keys = zip(self.snapshots["trunk"], self.snapshots["snapshot"])
        snapshot_rows = {key: row for row, key in enumerate(keys)}
        parts = [
            np.log(_padded(branches["lr_scale"], 1.0)),
            np.log(_padded(branches["weight_decay_scale"], 1.0)),
            _padded(([CLIPS.index(clip) for clip in row] for row in branches["clip"]), 0.0),
            *(
                _padded(branches[name], 0.0)
                for name in ("momentum_reset", "data_reorder", "skip_batch")
            ),
        ]
        propensity = _padded(branches["propensity"], math.nan)
        return Arrays(
            trunk=np.array([trunk_rows[name] for name in branches["trunk"]], dtype=np.int64),
            snapshot=np.array(
                [snapshot_rows[key] for key in zip(branches["trunk"], branches["snapshot"])],
                dtype=np.int64,
            ),
            actions=np.stack(parts, axis=-1),
            taken=~np.isnan(propensity),
            propensity=propensity,
            wide=_padded(branches["wide"], 0.0) > 0,
            validation=np.stack(
                [np.asarray(row, dtype=np.float64) for row in branches["validation"]]
            ),
            annealed=branches["annealed"].to_numpy(dtype=np.float64),
            final=branches["final"].to_numpy(dtype=np.float64),
            diverged=branches["diverged_at"].to_numpy() >= 0,
            recovery=branches["recovery_steps"].to_numpy(dtype=np.int64),
            recovered=branches["recovered"].to_numpy(dtype=np.bool_),
        )

    def _read_telemetry(self, trunk: str, table: str) -> pd.DataFrame:
        if trunk not in set(self.trunks["trunk"]):
            raise UserError(
                f"expected one of {len(self.trunks)} trunks, {self.trunks['trunk'].iloc[0]} …, "
                f"found {trunk!r}; see the column trunk of `trunks`"
            )
        rows: pd.DataFrame = self._shards.table(trunk, table).to_pandas()
        return rows


def _check(name: str, trunks: pa.Table, snapshots: pa.Table, branches: pa.Table) -> None:
    """Check that the tables of a shard fit each other.

    Raises:
        UserError: They contradict each other.
    """

    def expect(holds: bool, what: str) -> None:
        if not holds:
            raise UserError(
                f"expected {what} in the shard {name}, found otherwise; {schema.REMEDY}"
            )

    expect(trunks["trunk"].to_pylist() == [name], "one trunk, of the shard's name,")
    for table in (snapshots, branches):
        expect(set(table["trunk"].to_pylist()) <= {name}, "rows of that trunk alone")
    expect(
        snapshots["snapshot"].to_pylist() == list(range(len(snapshots))),
        "snapshots numbered from 0 on",
    )
    seen: dict[int, int] = {}
    for row in branches.to_pylist():
        expect(row["branch"] == seen.get(row["snapshot"], 0), "branches numbered from 0 on")
        expect(
            (row["kind"] == "control") == (row["branch"] == 0),
            "the control, and it alone, as branch 0",
        )
        expect(
            len({len(row[part]) for part in _DECIDED}) == 1 and len(row["clip"]) <= DECISIONS,
            "each decision whole",
        )
        expect(len(row["validation"]) == 1 + LOOKS, f"{1 + LOOKS} validations a branch")
        expect(all(clip in CLIPS for clip in row["clip"]), "known clip policies")
        seen[row["snapshot"]] = row["branch"] + 1
    expect(set(seen) == set(range(len(snapshots))), "branches of every snapshot")


def _padded(rows: Iterable[Sequence[float]], fill: float) -> Floats:
    """Return lists of up to 4 numbers as an array, [n, 4], with a value for what is missing."""
    listed = [np.asarray(row, dtype=np.float64) for row in rows]
    padded = np.full((len(listed), DECISIONS), fill)
    for place, row in enumerate(listed):
        padded[place, : len(row)] = row
    return padded


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_list(kind))
