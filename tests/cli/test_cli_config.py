"""`trainenv config`: descriptions of all keys, values of a preset, a JSON schema for editors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.command_line import assert_one_sentence
from tests.support.strict_json import strict
from trainenv.cli import main
from trainenv.config import RunConfig
from trainenv.config.describe import Key, keys, markdown, sections
from trainenv.config.presets import configs_folder, parse_value, presets, read_yaml

MINIMAL = {
    "steps": 10,
    "batch_size": 4,
    "model": {"width": 8, "layers": 1, "heads": 2, "context": 8},
    "optimizer": {"lr": 1e-3},
}
MAPPINGS = ("clip.options", "monitor.uncertainty.weights")  # of names that are no keys


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a configuration, without the help of pydantic."""
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and key not in MAPPINGS:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    assert main(["config", "describe", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert (err, out.count("\n")) == ("", 1)
    result = strict(out)
    assert result["command"] == "config describe"
    return {key["key"]: key for key in result["keys"]}


# ── descriptions ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_every_key_has_one_or_two_sentences(key: Key) -> None:
    assert re.match(r"[A-Z`]", key.description)
    assert key.description.endswith(".")
    assert len(re.findall(r"\.(?: |$)", key.description)) <= 2
    assert "  " not in key.description
    assert "|" not in key.description  # it is a cell of a table


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.name or "top")
def test_every_section_is_introduced(section: Any) -> None:
    assert section.keys
    assert section.about.split("\n\n")[0].endswith(".")


def test_all_keys_are_described_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    found = described(capsys)
    config = RunConfig.model_validate(MINIMAL)
    there = dict(leaves(config.model_dump(mode="json")))
    planted = {f"stressors.planted[].{key}" for key in ("at", "kind", "steps", "size")}
    assert set(found) - set(there) == planted | {"objective.options"}  # an empty mapping
    assert set(there) <= set(found)
    required = {name for name, key in found.items() if key["required"]}
    stated = {name for name, _ in leaves(MINIMAL)}
    assert required == stated | {"stressors.planted[].at", "stressors.planted[].kind"}
    for name in there.keys() - required:
        assert found[name]["value"] == there[name], name
    assert all(found[name]["value"] is None for name in required)


@pytest.mark.parametrize("preset", presets())
def test_a_preset_is_described_with_its_values(
    preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = described(capsys, preset)
    for name, value in leaves(RunConfig.load(preset).model_dump(mode="json")):
        assert (found[name]["value"], found[name]["required"]) == (value, False)


def test_a_file_is_described_with_its_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tiny\noptimizer: {lr: 5e-4}\n", encoding="utf-8")
    assert described(capsys, "mine.yaml")["optimizer.lr"]["value"] == 5e-4


def test_values_are_written_as_a_file_has_them() -> None:
    for key in keys(RunConfig.load("demo", {"corpus": {"name": "text", "path": "/a b/ü.txt"}})):
        if not key.required:
            assert parse_value(key.text) == key.value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("optimizer.lr", ["optimizer.lr"]),
        ("lr", ["optimizer.lr"]),
        ("every", ["validation.every", "checkpoints.every", "branching.every"]),
        ("schedule", [f"schedule.{key}" for key in ("kind", "warmup", "final", "decay_share")]),
        ("seed", ["seed"]),
    ],
)
def test_one_key_or_one_section(
    name: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(described(capsys, name)) == expected


def test_a_section_has_those_inside_it(capsys: pytest.CaptureFixture[str]) -> None:
    inside = described(capsys, "monitor")
    assert {"monitor.block", "monitor.uncertainty.window"} <= set(inside)
    assert set(described(capsys, "uncertainty")) < set(inside)
    assert set(described(capsys, "planted")) == {
        "stressors.planted",
        *described(capsys, "stressors.planted[]"),
    }


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("optimizer.lrr", "'optimizer.lr'"),
        ("min_gian", "'min_gain'"),
        ("branchin", "'branching'"),
        ("tinny", "'tiny'"),
        ("monitor.uncertainty.treshold", "'monitor.uncertainty.threshold'"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    wrong: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"unknown configuration key {wrong!r}; did you mean {meant}?",
        "optimizer.lr",
        "preset",
    )
    assert_one_sentence(["config", "describe", wrong], words, tmp_path, capsys)
    assert_one_sentence(["config", "describe", wrong, "--json"], words, tmp_path, capsys)


@pytest.mark.parametrize("wrong", ["qqqq", "", "gone.yaml", "."])
def test_what_is_no_key_costs_a_sentence(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(["config", "describe", wrong], ("preset",), tmp_path, capsys)


def test_tables_for_people_cut_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "describe", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    for key in keys(RunConfig.load("tiny")):
        assert re.search(
            rf"^ *{re.escape(key.name)} .*{re.escape(key.text)} .*{re.escape(key.description)}",
            out,
            re.M,
        )


def test_markdown_is_printed_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "describe", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown()
    for more in (["tiny"], ["--json"]):
        assert_one_sentence(
            ["config", *more, "--markdown"], ("--markdown", "alone"), tmp_path, capsys
        )


def test_a_single_key_is_described_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schedule.final"]) == 0
    name, default, kind, *meaning = capsys.readouterr().out.splitlines()
    assert (name, default) == ("schedule.final", "  default: 0.1")
    assert kind == "  type: number ≥ 0 and ≤ 1"
    assert " ".join(" ".join(meaning).split()).startswith("Factor on the base rate at the end")


def test_two_keys_cost_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_sentence(["config", "seed", "steps"], ("seed and steps", "one"), tmp_path, capsys)


# ── the JSON schema ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["config", "schema"]) == 0
    printed: dict[str, Any] = strict(capsys.readouterr().out)
    assert main(["config", "schema", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert strict(out) == {"command": "config schema", "schema": printed}
    Draft202012Validator.check_schema(printed)
    return printed


def test_shipped_files_keep_the_schema(schema: dict[str, Any]) -> None:
    for preset in presets():
        Draft202012Validator(schema).validate(read_yaml(configs_folder() / f"{preset}.yaml"))


@pytest.mark.parametrize(
    "values",
    [
        {"extends": "tiny"},
        {"extends": "tiny", "model": {"width": 32}},
        {"extends": "tiny", "monitor": {"uncertainty": {"window": 64}}},
        {"extends": "tiny", "clip": {"options": {"zclip": {"z_threshold": 2.0}}}},
        {"extends": "tiny", "stressors": {"planted": [{"at": 3, "kind": "lr_spike"}]}},
        MINIMAL,
    ],
)
def test_a_file_that_loads_keeps_the_schema(values: dict[str, Any], schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 10},  # and it extends nothing
        {"extends": "tiny", "stepss": 3},
        {"extends": "tiny", "optimizer": {"lr": 0}},
        {"extends": "tiny", "optimizer": {"lrr": 1e-3}},
        {"extends": "tiny", "clip": {"policy": "zclop"}},
        {"extends": "tiny", "clip": {"options": {"zclop": {}}}},
        {"extends": "tiny", "branching": {"max_waste": 0.95}},
        {"extends": "tiny", "stressors": {"planted": [{"kind": "lr_spike"}]}},
        {"extends": 3},
    ],
)
def test_a_file_with_a_mistake_does_not(values: dict[str, Any], schema: dict[str, Any]) -> None:
    assert not Draft202012Validator(schema).is_valid(values)


def test_an_editor_shows_each_description(schema: dict[str, Any]) -> None:
    for key in keys():
        *above, last = key.name.replace("planted[]", "Plant").split(".")
        properties = schema["properties"]
        for part in above:
            inside = schema["$defs"]["Plant"] if part == "Plant" else properties[part]
            properties = schema["$defs"].get(inside.get("$ref", "").rpartition("/")[2], inside)[
                "properties"
            ]
        assert properties[last]["description"] == key.description
