"""Reading returns what was written; torn, foreign and contradictory files are refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.toy_runs import SMALL, make_run, trunks
from trainenv.records.telemetry_log import log_schema
from trainenv.types import UserError
from trainenv.worldmodel.dataset import (
    Dataset,
    Trunk,
    by_trunk,
    effects,
    generate,
    leave_action_out,
    leave_out,
    sample,
    uses,
)
from trainenv.worldmodel.dataset import schema as schemas
from trainenv.worldmodel.dataset.dataset import CLIPS

TRUNKS = trunks(4, seed=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "branches"
    report = generate(folder, TRUNKS, make_run, design=SMALL, workers=0)
    assert not report.failed
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def rewrite(folder: Path, table: str, change: Any) -> None:
    path = folder / "shards" / "t00001" / f"{table}.parquet"
    rows = pq.read_table(path).to_pylist()
    schemas.write(change(rows) or rows, table, path)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_data_set_is_read_back_whole(built: Path) -> None:
    data = Dataset.open(built)
    data.verify()
    assert data.design == SMALL
    assert [Trunk.from_json(json.loads(recipe)) for recipe in data.trunks["recipe"]] == list(TRUNKS)
    arrays = data.arrays()
    count = len(data.branches)
    assert arrays.actions.shape == (count, 4, 6)
    assert arrays.validation.shape == (count, 9)
    assert np.isfinite(arrays.actions).all()
    control = (data.branches["kind"] == "control").to_numpy()
    assert not arrays.actions[control].any()
    assert np.array_equal(data.trunks["trunk"].to_numpy()[arrays.trunk], data.branches["trunk"])
    assert np.array_equal(
        data.snapshots["snapshot"].to_numpy()[arrays.snapshot], data.branches["snapshot"]
    )
    assert arrays.actions[:, :, 2].max() < len(CLIPS)
    row = int(np.flatnonzero(arrays.actions[:, 0, 0])[0])
    assert np.exp(arrays.actions[row, 0, 0]) == pytest.approx(
        data.branches["lr_scale"].iloc[row][0]
    )


def test_windows_end_at_their_snapshot(built: Path) -> None:
    data = Dataset.open(built)
    windows = data.windows(["step", "loss", "fired"], steps=16)
    assert windows.shape == (len(data.snapshots), 16, 3)
    assert windows[:, -1, 0].tolist() == data.snapshots["step"].tolist()
    first = int(data.snapshots["step"].argmin())
    known = ~np.isnan(windows[first, :, 0])
    assert known.sum() == min(16, data.snapshots["step"].iloc[first])
    with pytest.raises(UserError, match=r"among line, step.*found 'stressors'"):
        data.windows(["stressors"])


def test_rows_follow_the_json_schema(built: Path) -> None:
    schema = schemas.branches_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for table in schemas.TABLES:
        own = schema["$defs"][table]["properties"]
        check = jsonschema.Draft202012Validator(schema["$defs"][table])
        for row in pq.read_table(built / "shards" / "t00000" / f"{table}.parquet").to_pylist()[:50]:
            check.validate(row)
            assert set(row) - set(own) == (
                set(log_schema()["required"]) if table.endswith("_steps") else set()
            )
        assert all(column["description"] for column in own.values())


# ── refusing ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_data_set_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a data set"):
        Dataset.open(tmp_path)
    (tmp_path / "something.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no data set"):
        generate(tmp_path, TRUNKS, make_run, workers=0)
    with pytest.raises(UserError, match="must be a folder"):
        generate(tmp_path / "something.txt" / "below", TRUNKS, make_run, workers=0)
    for header in ("{}", "[1]", "", '{"format": "trainenv branches 1", "design": {"size": 3}}'):
        (tmp_path / "dataset.json").write_text(header)
        with pytest.raises(UserError, match="expected a d"):
            Dataset.open(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "trainenv branches 9", "design": {}}')
    with pytest.raises(UserError, match="'trainenv branches 9'"):
        Dataset.open(tmp_path)
    shutil.copy(built / "dataset.json", tmp_path)
    with pytest.raises(UserError, match="found none yet"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("table", schemas.TABLES)
def test_a_torn_or_damaged_file_is_refused(copied: Path, table: str) -> None:
    path = copied / "shards" / "t00001" / f"{table}.parquet"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1 no such thing PAR1", _flipped(whole)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{table}.*remove the folder of this trunk"):
            Dataset.open(copied).verify()
    path.unlink()
    with pytest.raises(UserError, match=table):
        Dataset.open(copied).verify()


def _flipped(whole: bytes) -> bytes:
    damaged = bytearray(whole)
    damaged[60] ^= 0x10  # inside the first page
    return bytes(damaged)


def test_a_foreign_file_is_refused(copied: Path) -> None:
    path = copied / "shards" / "t00001" / "branches.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="found 'another format'"):
        Dataset.open(copied)
    shutil.copy(path.with_name("snapshots.parquet"), path)
    with pytest.raises(UserError, match=r"columns of table branches.*found no branch"):
        Dataset.open(copied)
    (copied / "shards" / "notes").mkdir()
    with pytest.raises(UserError, match="found notes"):
        Dataset.open(copied)


def test_a_column_too_many_or_of_another_type_is_refused(copied: Path) -> None:
    path = copied / "shards" / "t00001" / "snapshots.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("more", pa.array([0] * len(table))), path)
    with pytest.raises(UserError, match="also more"):
        Dataset.open(copied)
    pq.write_table(table.set_column(2, "step", table["step"].cast(pa.float64())), path)
    with pytest.raises(UserError, match="step of type double, not int64"):
        Dataset.open(copied)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("branches", lambda rows: rows[1:], "branches numbered from 0"),
        (
            "branches",
            lambda rows: [row for row in rows if row["snapshot"]],
            "branches of every snapshot",
        ),
        ("branches", lambda rows: rows[0].update(kind="single"), "the control"),
        ("branches", lambda rows: rows[0].update(kind="guess"), "found 'guess'"),
        ("branches", lambda rows: rows[0].update(propensity=[1.0]), "each decision whole"),
        ("branches", lambda rows: rows[0].update(validation=[1.0]), "9 validations"),
        ("branches", lambda rows: rows[0].update(clip=["tight"] * 4), "known clip policies"),
        ("snapshots", lambda rows: rows[0].update(trunk="t00002"), "rows of that trunk alone"),
        ("snapshots", lambda rows: rows[0].update(snapshot=9), "snapshots numbered from 0"),
        ("trunks", lambda rows: rows[0].update(trunk="t00002"), "one trunk"),
        ("branch_steps", lambda rows: rows[2:], "telemetry of every step"),
        ("trunk_steps", lambda rows: rows[2:], "telemetry of every step"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(
    copied: Path, table: str, change: Any, message: str
) -> None:
    rewrite(copied, table, change)
    with pytest.raises(UserError, match=message):
        Dataset.open(copied).verify()


# ── splits ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def frame(count: int) -> pd.DataFrame:
    listed = sample(count, seed=0)
    return pd.DataFrame(
        {
            "trunk": [trunk.name for trunk in listed],
            "setting": [trunk.setting for trunk in listed],
            "width": [trunk.size.width for trunk in listed],
            "stressor": [trunk.stressor for trunk in listed],
            "faults": [[fault.kind for fault in trunk.faults] for trunk in listed],
        }
    )


def test_no_trunk_is_in_two_parts_and_settings_are_spread() -> None:
    table = frame(80)
    parts = by_trunk(table, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=1)
    assert sorted(sum(parts.values(), ())) == sorted(table["trunk"])
    assert {part: len(names) for part, names in parts.items()} == {
        "train": 56,
        "validation": 8,
        "test": 16,
    }
    clean = set(table["trunk"][table["setting"] == "clean"])
    assert len(clean & set(parts["test"])) == 4
    assert by_trunk(table, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=1) == parts
    assert by_trunk(table, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=2) != parts
    with pytest.raises(UserError, match="above 0"):
        by_trunk(table, {"train": 1, "test": 0})


@pytest.mark.parametrize("column", ["width", "stressor", "faults", "setting"])
def test_leaving_a_level_out_never_shares_a_trunk(column: str) -> None:
    table = frame(80)
    levels = list(leave_out(table, column))
    assert len(levels) >= 5
    for level, without, having in levels:
        assert level
        assert not set(without) & set(having)
        assert len(without) + len(having) == 80
        held = table.set_index("trunk").loc[list(having), column]
        assert all(
            level in value if isinstance(value, list) else level == str(value) for value in held
        )
    with pytest.raises(UserError, match="'colour'"):
        next(leave_out(table, "colour"))


def test_leaving_an_action_out(built: Path) -> None:
    branches = Dataset.open(built).branches
    names = sorted(branches["trunk"].unique())
    learn, test = leave_action_out(
        branches, "lr_scale", train=tuple(names[:2]), test=tuple(names[2:])
    )
    assert learn.any()
    assert test.any()
    assert not uses(branches, "lr_scale")[learn].any()
    assert uses(branches, "lr_scale")[test].all()
    assert not set(branches["trunk"][learn]) & set(branches["trunk"][test])
    assert not uses(branches[branches["kind"] == "control"], "clip").any()
    with pytest.raises(UserError, match="in both"):
        leave_action_out(branches, "clip", train=("t00000",), test=("t00000",))
    with pytest.raises(UserError, match="'magic'"):
        uses(branches, "magic")


# ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_effects_are_against_the_control_and_lost_runs_count_as_the_cap(built: Path) -> None:
    data = Dataset.open(built)
    row = int(np.flatnonzero(data.branches["kind"] == "single")[0])
    branch = data.branches.loc[row].copy()
    branch["validation"] = [*branch["validation"][:3], *[None] * 6]
    branch["annealed"] = np.nan
    data.branches.loc[row] = branch
    found = effects(data)
    assert len(found) == (data.branches["kind"] != "control").sum()
    lost = found[
        (found["trunk"] == branch["trunk"])
        & (found["snapshot"] == branch["snapshot"])
        & (found["branch"] == branch["branch"])
    ]
    control = data.branches[
        (data.branches["trunk"] == branch["trunk"])
        & (data.branches["snapshot"] == branch["snapshot"])
    ].iloc[0]
    cap = SMALL.divergence * np.log(23)
    assert lost["horizon"].item() == pytest.approx(np.log(cap / control["validation"][-1]))
    assert lost["annealed"].item() == pytest.approx(np.log(cap / control["annealed"]))
    assert np.isfinite(found[["horizon", "annealed"]]).all(axis=None)
    going_on = found.merge(data.snapshots[["trunk", "snapshot", "continued"]])["continued"]
    assert (found["final"].notna() == going_on).all()
