"""Telemetry on disk: every value as it was, parts that are whole, and the history that was kept."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.config.presets import configs_folder
from trainenv.records.telemetry_log import (
    TelemetryLog,
    arrow_schema,
    log_schema,
    read_telemetry,
    row,
    telemetry_of,
)
from trainenv.types import TELEMETRY_FIELDS, Reading, Telemetry, UserError

MAY_BE_NULL = {
    "hypergradient_cosine",
    "update_ratio",
    "probe_loss",
    "attention_entropy",
    "activation_entropy",
    "embedding_rms",
    "shortcut_ratio",
    "loss_scale",
}


def telemetry(step: int, **changes: Any) -> Telemetry:
    values: dict[str, Any] = {
        "step": step,
        "data_index": step - 1,
        "tokens": 512,
        "loss": 3.25 - 0.001 * step,
        "grad_norm": 1.5,
        "grad_norm_clipped": 1.0,
        "clip_threshold": math.inf,
        "clip_score": -0.5,
        "clip": "zclip",
        "lr": 3e-4,
        "lr_scale": 0.9,
        "weight_decay": 0.1,
        "weight_decay_scale": 2.0,
        "steps_since_reset": -1,
        "progress": 0.25,
    }
    return Telemetry(**{**values, **changes})


FULL = {
    **dict.fromkeys(MAY_BE_NULL, 0.5),
    "stressors": ("rare_tokens", "lr_spike"),
    "reading": Reading(1.0, 2.0, 3.0, 1.7, 2.5, True),
}


def columns(folder: Path, name: str) -> list[Any]:
    parts = sorted(folder.glob("part-*.parquet"))
    return [value for part in parts for value in pq.read_table(part)[name].to_pylist()]


# ── schema ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_schema_is_json_schema_and_covers_exactly_what_is_measured() -> None:
    schema = json.loads((configs_folder() / "log_schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    measured = {"line", "purpose", *TELEMETRY_FIELDS, *(f.name for f in fields(Reading))} - {
        "reading"
    }
    assert set(schema["properties"]) == measured
    assert set(schema["required"]) == measured - {"objective"}
    assert schema["additionalProperties"] is False
    assert {
        name for name, column in schema["properties"].items() if "null" in column["type"]
    } == MAY_BE_NULL
    assert all(column["description"] for column in schema["properties"].values())
    assert log_schema() == schema


@pytest.mark.parametrize(
    "measured",
    [telemetry(1), telemetry(2, **FULL), telemetry(3, loss=math.nan, grad_norm=math.inf)],
)
def test_real_rows_follow_the_schema(measured: Telemetry) -> None:
    values = row(measured, 3, "verify")
    jsonschema.Draft202012Validator(log_schema()).validate(values)
    assert (values["line"], values["purpose"]) == (3, "verify")


def test_the_schema_refuses_what_is_no_row() -> None:
    check = jsonschema.Draft202012Validator(log_schema())
    good = row(telemetry(1, **FULL), 0, "main")
    for bad in (
        {**good, "loss": None},
        {**good, "more": 1},
        {**good, "step": 1.5},
        {**good, "stressors": "x"},
        {k: good[k] for k in list(good)[1:]},
    ):
        assert not check.is_valid(bad)


def test_arrow_types_nulls_and_notes() -> None:
    schema = arrow_schema()
    assert set(schema.names) == set(log_schema()["required"])
    kinds = {
        "number": pa.float64(),
        "integer": pa.int64(),
        "string": pa.string(),
        "boolean": pa.bool_(),
        "array": pa.list_(pa.string()),
    }
    for name in log_schema()["required"]:
        column = log_schema()["properties"][name]
        kind = column["type"] if isinstance(column["type"], str) else column["type"][0]
        assert schema.field(name).type == kinds[kind]
        assert schema.field(name).nullable == (name in MAY_BE_NULL)
        assert schema.field(name).metadata[b"description"].decode() == column["description"]
    assert schema.field("loss").metadata[b"unit"] == b"nats/token"


def test_notes_are_in_the_files(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path)
    log.append([telemetry(1)])
    log.flush()
    written = pq.read_schema(tmp_path / "part-00000.parquet")
    assert written.names == arrow_schema().names
    for field in arrow_schema():
        assert field.metadata.items() <= written.field(field.name).metadata.items()
        assert written.field(field.name).nullable == field.nullable


# ── round trip ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_value_comes_back(tmp_path: Path) -> None:
    original = telemetry(7, **FULL)
    log = TelemetryLog(tmp_path / "telemetry")
    log.append([original], line=4, purpose="verify")
    log.flush()
    (table,) = read_telemetry(tmp_path).to_dict("records")
    assert (table.pop("line"), table.pop("purpose")) == (4, "verify")
    assert tuple(table.pop("stressors")) == original.stressors
    for name in [f.name for f in fields(Reading)]:
        assert table.pop(name) == getattr(original.reading, name)
    assert table == {
        name: getattr(original, name)
        for name in TELEMETRY_FIELDS
        if name not in {"reading", "stressors", "objective"}
    }


def test_numbers_of_the_objective_are_a_column_of_the_parts_that_have_them(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path)
    log.append([telemetry(1)])
    log.flush()  # as a version without such numbers has written it
    measured = telemetry(2, objective={"loss_0": 2.5, "weight_entropy": math.nan})
    jsonschema.Draft202012Validator(log_schema()).validate(row(measured, 0, "main"))
    log.append([measured, telemetry(3)])
    log.flush()
    assert "objective" not in pq.read_schema(tmp_path / "part-00000.parquet").names
    assert "objective" in pq.read_schema(tmp_path / "part-00001.parquet").names
    rows = read_telemetry(tmp_path)
    assert repr(telemetry_of(rows)) == repr([telemetry(1), measured, telemetry(3)])
    assert "objective" not in row(telemetry(1), 0, "main")


def test_unmeasured_is_null_and_nan_stays_nan(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path)
    log.append(
        [
            telemetry(1, loss=math.nan, grad_norm=math.inf, clip_score=math.nan),
            telemetry(2, probe_loss=0.5),
        ]
    )
    log.flush()
    assert columns(tmp_path, "probe_loss") == [None, 0.5]
    for name in MAY_BE_NULL - {"probe_loss"}:
        assert columns(tmp_path, name) == [None, None]
    first, second = columns(tmp_path, "loss")
    assert math.isnan(first)
    assert second == telemetry(2).loss
    assert columns(tmp_path, "grad_norm") == [math.inf, 1.5]
    assert columns(tmp_path, "clip_threshold") == [math.inf, math.inf]
    assert math.isnan(columns(tmp_path, "clip_score")[0])
    assert math.isnan(read_telemetry(tmp_path)["loss"][0])


@given(
    values=st.lists(
        st.tuples(st.floats(), st.floats(), st.integers(-1, 2**62)), min_size=1, max_size=5
    )
)
@settings(max_examples=20, deadline=None)
def test_numbers_are_kept_to_the_bit(
    values: list[tuple[float, float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("t")
    log = TelemetryLog(folder)
    log.append([telemetry(1, loss=a, lr=b, data_index=c) for a, b, c in values])
    log.flush()
    for name, expected in zip(("loss", "lr"), zip(*values)):
        np.testing.assert_array_equal(columns(folder, name), expected)
    assert columns(folder, "data_index") == [c for *_, c in values]


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_are_written_when_there_are_enough_rows(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path, part_rows=5)
    log.append(telemetry(step) for step in range(1, 5))
    assert list(tmp_path.iterdir()) == []
    log.append([telemetry(5)])
    assert [p.name for p in tmp_path.iterdir()] == ["part-00000.parquet"]
    log.flush()
    assert len(list(tmp_path.iterdir())) == 1
    log.append(telemetry(step) for step in range(6, 9))
    log.flush()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert columns(tmp_path, "step") == list(range(1, 9))


def test_reopening_goes_on_after_the_last_part(tmp_path: Path) -> None:
    for first in range(0, 24, 2):
        log = TelemetryLog(tmp_path)
        log.append([telemetry(first), telemetry(first + 1)])
        log.flush()
    assert read_telemetry(tmp_path)["step"].tolist() == list(range(24))
    assert len(list(tmp_path.glob("part-*.parquet"))) == 12


def test_a_lost_part_is_not_written_over(tmp_path: Path) -> None:
    for step in range(3):
        log = TelemetryLog(tmp_path)
        log.append([telemetry(step)])
        log.flush()
    (tmp_path / "part-00001.parquet").unlink()
    log = TelemetryLog(tmp_path)
    log.append([telemetry(3)])
    log.flush()
    assert read_telemetry(tmp_path)["step"].tolist() == [0, 2, 3]


def test_a_torn_part_never_happened(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path)
    log.append([telemetry(1)])
    log.flush()
    (tmp_path / "part-00001.tmp").write_bytes((tmp_path / "part-00000.parquet").read_bytes()[:100])
    log = TelemetryLog(tmp_path)
    assert read_telemetry(tmp_path)["step"].tolist() == [1]
    log.append([telemetry(2)])
    log.flush()
    assert read_telemetry(tmp_path)["step"].tolist() == [1, 2]


def test_a_failing_write_leaves_no_part_and_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TelemetryLog(tmp_path)
    log.append([telemetry(1)])

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", fail)
        with pytest.raises(OSError, match="no space"):
            log.flush()
    assert not list(tmp_path.glob("part-*.parquet"))
    log.append([telemetry(2)])
    log.flush()
    assert read_telemetry(tmp_path)["step"].tolist() == [1, 2]


def test_a_run_s_folder_and_its_telemetry_folder_are_the_same(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path / "telemetry")
    log.append([telemetry(1)])
    log.flush()
    for folder in (tmp_path, str(tmp_path), tmp_path / "telemetry"):
        assert read_telemetry(folder)["step"].tolist() == [1]


@pytest.mark.parametrize("name", ["empty", "gone"])
def test_no_telemetry(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError,
        match=r"expected telemetry under .*, found no part-\*\.parquet; give the folder of a run",
    ):
        read_telemetry(tmp_path / name)


# ── the history that was kept ───────────────────────────────────────────────────────────────────────────────────────

moves = st.lists(
    st.tuples(st.sampled_from(["advance", "rewind", "verify"]), st.integers(0, 12)),
    min_size=1,
    max_size=12,
)


@given(moves=moves, last=st.integers(1, 5), part_rows=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_kept_only_is_what_a_simulation_keeps(
    moves: list[tuple[str, int]],
    last: int,
    part_rows: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("t")
    log, line, step = TelemetryLog(folder, part_rows=part_rows), 0, 0
    kept: list[tuple[int, int]] = []
    written = 0
    for move, size in [*moves, ("advance", last)]:
        if move == "rewind":
            step = max(0, step - size)
            line += 1
            kept = [(at, of) for at, of in kept if at <= step]
        else:
            steps = range(step + 1, step + size + 1)
            log.append(
                [telemetry(s) for s in steps],
                line=line,
                purpose="main" if move == "advance" else "verify",
            )
            written += len(steps)
            if move == "advance":
                kept += [(s, line) for s in steps]
                step += size
    log.flush()
    table = read_telemetry(folder, kept_only=True)
    assert list(zip(table["step"], table["line"])) == kept
    assert table.index.tolist() == list(range(len(kept)))
    assert set(table["purpose"]) == {"main"}
    assert len(read_telemetry(folder)) == written


def test_nested_rewinds(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path)
    for line, (first, last) in enumerate([(1, 10), (6, 14), (9, 9), (3, 5)]):
        log.append([telemetry(step) for step in range(first, last + 1)], line=line)
    log.flush()
    table = read_telemetry(tmp_path, kept_only=True)
    assert list(zip(table["step"], table["line"])) == [(1, 0), (2, 0), (3, 3), (4, 3), (5, 3)]
