"""`trainenv wmtp` end to end on a tiny budget: compare, train, evaluate, resume, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import asks_to_stop_at, assert_one_sentence, final
from trainenv.cli import INTERRUPTED, main

PRESET = """
seeds: 1
methods: [uniform, rho1, critic, low-excess, next-token]
run:
  steps: 8
  batch_size: 4
  model: {width: 16, layers: 1, heads: 2, context: 28}
  tasks: {scale: 0.001, held_out: 6, kinds: [strings], difficulties: [1, 1]}
  schedule: {warmup: 2}
  validation: {every: 4, sequences: 4}
  checkpoints: {every: 4}
  monitor: {block: 2}
reference: {steps: 4}
evaluation: {samples: 2, ks: [1, 2], max_tokens: 4, tasks: 3, drafts: 2}
"""


@pytest.fixture(autouse=True)
def preset(in_an_empty_folder: None) -> None:
    Path("own.yaml").write_text(PRESET)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_compare_writes_table_and_page_and_does_nothing_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["wmtp", "compare", "--preset", "own.yaml", "--out", "c", "--json"]
    assert main(command) == 0
    found = printed(capsys)
    assert found["finished"]
    assert found["failed"] == []
    assert found["reference_flops"] > 0
    flops = found["metrics"]["flops"]["methods"]
    # The reference reads every token too, so rho1 has fewer steps.
    assert flops["rho1"]["value"] <= flops["uniform"]["value"]
    assert {"exact_match", "pass@2", "memory", "acceptance", "errors of head 3"} <= set(
        found["metrics"]
    )
    assert found["errors"]["rho1"]["difficulty"] == "loss of the reference"
    assert flops["next-token"]["value"] <= flops["uniform"]["value"]
    assert set(found["td_errors"]) == {"critic"}
    page = Path(found["report"]).read_text()
    assert "Weightings of multi-token prediction" in page
    assert "TD errors of the critic" in page
    Path(found["report"]).unlink()
    assert main(["report", "c", "--json"]) == 0
    assert printed(capsys)["kind"] == "weightings"
    assert Path(found["report"]).read_text() == page
    assert_one_sentence(
        ["report", "c", "--tensorboard", "t"],
        ["that of weightings", "leave it out"],
        Path("c"),
        capsys,
    )
    before = {path: path.stat().st_mtime_ns for path in Path("c/cells").rglob("*.json")}
    assert len(before) == 5
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("c/cells").rglob("*.json")} == before
    capsys.readouterr()
    other = ["--preset", "own.yaml", "--out", "c"]
    Path("own.yaml").write_text(PRESET.replace("steps: 8", "steps: 9"))
    assert_one_sentence(["wmtp", "compare", *other], ["other settings", "--out"], Path("c"), capsys)


def test_an_interrupted_run_ends_like_a_whole_one_and_is_evaluated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["wmtp", "train", "critic", "--preset", "own.yaml", "--json", "--out"]
    assert main([*command, "whole"]) == 0
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 4)
        assert main([*command, "cut"]) == INTERRUPTED
    assert not Path("cut/summary.json").exists()
    capsys.readouterr()
    assert_one_sentence(
        ["wmtp", "evaluate", "cut"], ["has ended", "trainenv wmtp train"], Path("cut"), capsys
    )
    assert main([*command, "cut"]) == 0
    assert final("cut") == final("whole")
    capsys.readouterr()
    small = ["--samples", "2", "--tasks", "3", "--max-tokens", "4"]
    assert main(["wmtp", "evaluate", "cut", *small, "--json"]) == 0
    found = printed(capsys)
    assert found["pass_at"].keys() == {"1"}
    assert found["drafting"]["tokens"] > 0
    assert found["errors"]["difficulty"] == "rarity of the token"
    assert "human_eval" not in found
    assert json.loads(Path("cut/evaluation.json").read_text())["exact_match"]["tasks"] == 3


MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "method": (["train", "rho"], ("'rho'", "did you mean 'rho1'?")),
    "preset": (["train", "uniform", "--preset", "quik"], ("'quik'", "did you mean 'quick'?")),
    "key": (
        ["train", "uniform", "--set", "objective.weigthing=rho1"],
        ("weigthing", "did you mean 'weighting'?"),
    ),
    "reference of a method without": (
        ["train", "uniform", "--reference", "a.safetensors"],
        ("--reference", "rho1", "uniform"),
    ),
    "reference that is missing": (
        ["train", "rho1", "--preset", "own.yaml", "--reference", "a.safetensors"],
        ("a.safetensors",),
    ),
    "folder": (["evaluate", "nowhere"], ("nowhere", "trainenv wmtp train")),
    "samples": (["evaluate", "nowhere", "--k", "20"], ("samples, 10", "20")),
    "methods": (["compare", "--methods", "uniform,rho"], ("'rho'", "rho1")),
    "workers": (["compare", "--workers", "-1"], ("--workers", "-1")),
    "seeds": (["compare", "--seeds", "0"], ("seeds", "at least 1")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_sentence(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = MISTAKES[mistake]
    assert_one_sentence(["wmtp", *arguments], words, tmp_path, capsys)
