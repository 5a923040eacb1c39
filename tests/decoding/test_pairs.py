"""Pairs of a configuration: trained, cached, resumed, traced, calibrated and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainenv.composition.own_models import TrainingProgress, train_models
from trainenv.config.decoding import PairsConfig
from trainenv.data import prompt_texts
from trainenv.decoding.clocks import CostClock, TracedTask
from trainenv.decoding.contract import Settings
from trainenv.decoding.pairs import (
    load_pair,
    load_tasks,
    prompts_of,
    record_traces,
    trace_path,
)
from trainenv.decoding.real_clock import RealClock
from trainenv.decoding.traces import load_trace
from trainenv.types import UserError

SHAPE: dict[str, Any] = {"layers": 2, "heads": 2, "batch_size": 2}
VALUES: dict[str, Any] = {
    "models": {
        "big": {"width": 16, "steps": 6, **SHAPE},
        "small": {"width": 8, "steps": 4, **SHAPE},
    },
    "pairs": [
        {"name": "two", "target": "big", "draft": "small"},
        {"name": "first", "target": "big", "first_layers": 1},
    ],
    "corpora": [{"name": "sums", "source": "arithmetic"}],
    "vocab_size": 280,
    "context": 48,
    "device": "cpu",
    "trace": {"rows": 3, "prompt": 8, "positions": 16, "depth": 3, "stride": 8, "top_k": 4},
}
CONFIG = PairsConfig.model_validate(VALUES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    train_models(CONFIG, path)
    return path


@pytest.fixture(scope="module")
def tasks(folder: Path) -> list[TracedTask]:
    return record_traces(CONFIG, folder)


def test_trained_models_are_kept_and_changed_ones_trained_again(folder: Path) -> None:
    seen: list[TrainingProgress] = []
    paths = train_models(CONFIG, folder, watch=seen.append)
    assert seen == []
    assert all((path / "config.json").is_file() for path in paths.values())
    assert not list(folder.glob("models/.*"))


def test_interrupted_training_resumes_and_ends_with_the_same_weights(
    folder: Path, tmp_path: Path
) -> None:
    seen: list[TrainingProgress] = []

    def watch(progress: TrainingProgress) -> None:
        seen.append(progress)

    with pytest.raises(UserError, match=r"training of big was interrupted at step .* of 6"):
        train_models(CONFIG, tmp_path, watch=watch, stop=lambda: True)
    train_models(CONFIG, tmp_path, watch=watch)
    assert [progress.model for progress in seen][-1] == "small"
    for name in ("big", "small"):
        weights = Path("models") / name / "model.safetensors"
        assert (tmp_path / weights).read_bytes() == (folder / weights).read_bytes()


def test_traces_are_recorded_once_and_known_by_their_origin(
    folder: Path, tasks: list[TracedTask]
) -> None:
    assert [task.name for task in tasks] == ["two--sums", "first--sums"]
    path = trace_path(folder, "two", "sums")
    before = path.stat().st_mtime_ns
    seen: list[tuple[str, int, int]] = []
    again = record_traces(CONFIG, folder, watch=lambda *state: seen.append(state))
    assert seen == []
    assert path.stat().st_mtime_ns == before
    assert [task.costs for task in again] == [task.costs for task in tasks]
    assert {task.name for task in load_tasks(folder)} == {task.name for task in tasks}
    with pytest.raises(UserError, match=r"found one of big with big\[:1\]"):
        load_trace(trace_path(folder, "first", "sums"), expected=tasks[0].trace.origin)
    other = CONFIG.model_copy(update={"trace": CONFIG.trace.model_copy(update={"seed": 1})})
    record_traces(other, folder, watch=lambda *state: seen.append(state))
    assert ("two--sums", 3, 3) in seen


def test_both_clocks_score_the_same_task(folder: Path, tasks: list[TracedTask]) -> None:
    pair = load_pair(CONFIG.pairs[0], CONFIG, folder)
    prompts = prompts_of(CONFIG.corpora[0], pair.tokenizer, rows=2, length=8)
    clock = RealClock(models={"two--sums": pair.models(prompts)}, max_new_tokens=12)
    settings = Settings(fallback_threshold=0.0, k=3)
    real = clock.score(tasks[0], settings, "exact")
    modelled = CostClock().score(tasks[0], settings, "exact")
    assert real.acceptance == modelled.acceptance
    assert real.time_per_token > 0
    assert real.tokens == 24
    with pytest.raises(UserError, match="needs the models of first--sums"):
        clock.score(tasks[1], settings, "exact")


def test_missing_models_and_texts_are_refused_in_a_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="train the models of the configuration first"):
        load_pair(CONFIG.pairs[0], CONFIG, tmp_path)
    values = VALUES | {"pairs": [{"name": "a", "target": str(tmp_path), "draft": "small"}]}
    config = PairsConfig.model_validate(values)
    with pytest.raises(UserError, match=r"expected the model .* in a folder or on the Hugging"):
        load_pair(config.pairs[0], config, folder)
    pair = load_pair(CONFIG.pairs[0], CONFIG, folder)
    with pytest.raises(UserError, match="documents of at least 5000 tokens in corpus sums"):
        prompts_of(CONFIG.corpora[0], pair.tokenizer, rows=1, length=5000)
    with pytest.raises(UserError, match="expected traces in"):
        load_tasks(tmp_path)
    (tmp_path / "short.txt").write_text("one\n\ntwo")
    with pytest.raises(UserError, match="at least 10 documents of text, found 2"):
        prompt_texts.documents("text", tmp_path / "short.txt")


def test_texts_are_the_same_each_time_and_held_out_parts_apart() -> None:
    found = prompt_texts.documents("arithmetic")
    assert found == prompt_texts.documents("arithmetic")
    train, held_out = prompt_texts.split(found)
    assert len(train) + len(held_out) == len(found)
    assert not set(train) & set(held_out)
    for line in found[0].decode().splitlines():
        left, _, right = line.partition(" = ")
        if "max" not in left:
            assert eval(left) == int(right)
