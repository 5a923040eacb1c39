"""Records of decisions: whole, as the schema says, and found again under their own name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.branched_runs import draft, forecast, lr, toy
from trainenv.config.presets import configs_folder
from trainenv.records.decision_files import NAME, read_decisions
from trainenv.types import CLIP_NAMES, Intervention, UserError
from trainenv.verification import record
from trainenv.verification.early_stopping import Losing
from trainenv.verification.rules import NAMES, make
from trainenv.verification.verify import Verification

interventions = st.builds(
    Intervention,
    lr_scale=st.floats(0.1, 10),
    weight_decay_scale=st.floats(0.1, 10),
    clip=st.sampled_from([None, *CLIP_NAMES]),
    momentum_reset=st.booleans(),
    data_reorder=st.booleans(),
    skip_batch=st.booleans(),
)
DECIDED: dict[str, Any] = {
    "number": 1,
    "why": "fired",
    "at": 12,
    "step": 8,
    "harm": math.nan,
    "decision_steps": 5,
    "start": {"fingerprint": "0" * 32, "flagged": [3], "checkpoint": "."},
    "end": {"fingerprint": "f" * 32},
}


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (configs_folder() / "decision_schema.json").read_text(encoding="utf-8")
    )
    return found


def check(told: Any) -> None:
    jsonschema.Draft202012Validator(schema()).validate(told)


def decided(rule: str = "agreement", **settings: Any) -> dict[str, Any]:
    """A record with one branch of each kind: good, lost, stopped, and one without a forecast."""
    run = toy(steps=200)
    plan = draft(
        lr(0.9), lr(1e12), lr(300.0), forecasts=[forecast(), forecast(-1, 1, 0.9), forecast()]
    )
    verification = Verification(verify_steps=12, rule=make(rule), **{"cooldown": 3} | settings)
    verdict = verification.verify(verification.rollouts(run, decision_steps=5), plan, horizon=20)
    return record.record_of(verdict, plan, verification) | DECIDED


# ── the schema ────────────────────────────────────────────────────────────────────────────────────────────────────────


def described(part: dict[str, Any], where: str) -> None:
    """Every field has a description, and no object takes fields that it does not name."""
    for name, field in part.get("properties", {}).items():
        assert field.get("description"), f"{where}.{name}"
        described(field, f"{where}.{name}")
    if "properties" in part:
        assert part["additionalProperties"] is False, where
    if "items" in part:
        described(part["items"], f"{where}[]")


def test_the_schema_is_one_and_describes_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    described(schema(), "decision")


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("stopping", [None, Losing()])
def test_records_are_as_the_schema_says(tmp_path: Path, rule: str, stopping: Losing | None) -> None:
    told = decided(rule, stopping=stopping)
    path = record.write(tmp_path / "8", told)
    check(json.loads(path.read_text(encoding="utf-8")))


def test_the_schema_refuses_what_is_no_record(tmp_path: Path) -> None:
    good = json.loads(record.write(tmp_path / "8", decided()).read_text(encoding="utf-8"))
    check(good)
    branch = good["branches"][1]
    wrong: list[dict[str, Any]] = [
        {**good, "more": 1},
        {key: value for key, value in good.items() if key != "start"},
        {**good, "why": "felt like it"},
        {**good, "branches": []},
        {**good, "accepted": 0},
        {**good, "branches": [{**branch, "fate": "lost"}]},
        {**good, "branches": [{**branch, "interventions": [{"lr": 1.0}]}]},
        {**good, "branches": [{**branch, "outcome": {**branch["outcome"], "diverged": None}}]},
        {**good, "start": {**good["start"], "fingerprint": "beef"}},
    ]
    for one in wrong:
        with pytest.raises(jsonschema.ValidationError):
            check(one)


# ── what is written ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    text = record.write(tmp_path / "8", decided()).read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    told = json.loads(text)
    assert told["harm"] is None
    assert told["schema"] == 1
    assert [branch["fate"] for branch in told["branches"]] == [
        "control",
        "accepted",
        "failed",
        "stopped",
    ]
    lost = told["branches"][2]
    assert (lost["delta"], lost["outcome"]["diverged"], lost["reason"]) == (
        None,
        True,
        "it diverged",
    )
    assert (
        told["branches"][1]["expected"]["low"]
        < told["branches"][1]["delta"]
        < told["branches"][1]["expected"]["high"]
    )
    assert len(told["branches"][1]["losses"]) == 12
    assert told["branches"][0]["interventions"] == [{}]
    assert told["branches"][1]["interventions"] == [{"lr_scale": 0.9}]


def test_a_record_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "branches" / "8"
    record.write(folder, decided())
    before = (folder / NAME).read_bytes()

    def no_room(path: Path, target: Any) -> Any:
        raise OSError("no space left on device")

    told = decided("risk")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", no_room)
        with pytest.raises(OSError, match="no space"):
            record.write(folder, told)
    assert (folder / NAME).read_bytes() == before
    record.write(folder, told)
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert read_decisions(tmp_path)[0]["verification"]["rule"] == "risk"


@given(st.lists(interventions, min_size=1, max_size=4))
def test_interventions_come_back(sequence: list[Intervention]) -> None:
    written = json.loads(json.dumps([record.changes(one) for one in sequence]))
    assert record.interventions_of(written) == tuple(sequence)


def test_nothing_changes_nothing() -> None:
    assert record.changes(Intervention()) == {}
    assert record.changes(Intervention(clip="zclip", lr_scale=0.8)) == {
        "lr_scale": 0.8,
        "clip": "zclip",
    }


@pytest.mark.parametrize(
    "wrong", [{"lr": 1.0}, {"lr_scale": -1.0}, {"lr_scale": "fast"}, {"clip": "hard"}]
)
def test_what_is_no_intervention_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"expected interventions|must be"):
        record.interventions_of([wrong])


# ── where ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_decision_of_a_step_has_its_own_folder(tmp_path: Path) -> None:
    for number, expected in ((1, "500"), (2, "500-2"), (3, "500-3")):
        where = record.folder_of(tmp_path, 500, number)
        assert where == tmp_path / "branches" / expected
        record.write(where, {"number": number})
    assert record.folder_of(tmp_path, 501, 4).name == "501"


@pytest.mark.parametrize(
    "left", [None, "", "{", "[]", "{}", '{"number": null}', '{"number": 2}', '{"number": 7}']
)
def test_what_a_killed_run_left_is_taken_anew(tmp_path: Path, left: str | None) -> None:
    record.write(tmp_path / "branches" / "500", {"number": 1})
    behind = tmp_path / "branches" / "500-2"
    behind.mkdir()
    if left is not None:
        (behind / NAME).write_text(left)
    assert record.folder_of(tmp_path, 500, 2) == behind
