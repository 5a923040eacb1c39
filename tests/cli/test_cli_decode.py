"""`trainenv decode`: searches that resume, comparisons, a recommendation, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import assert_one_sentence
from trainenv.agents.thresholds.evaluation import LESSONS
from trainenv.agents.thresholds.tuning import TRIALS, Tuning
from trainenv.cli import INTERRUPTED, main
from trainenv.decoding.pairs import costs_path, trace_path
from trainenv.decoding.traces import CostModel, SyntheticPair, save_trace, synthetic_trace
from trainenv.decoding.traces.file import save_costs

PAIRS = {"near": (0.5, 0.05), "far": (1.2, 0.2)}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with the traces of two synthetic pairs on one corpus, and on a second one."""
    folder = tmp_path / "pairs"
    for seed, (name, (noise, ratio)) in enumerate(PAIRS.items()):
        for corpus, sharpness in (("easy", 4.0), ("hard", 2.0)):
            pair = SyntheticPair(noise=noise, sharpness=sharpness, seed=seed, vocabulary=24)
            trace = synthetic_trace(pair, rows=6, positions=24, top_k=8)
            save_trace(
                replace(trace, origin=replace(trace.origin, target_digest=str(seed) * 16)),
                trace_path(folder, name, corpus),
            )
        save_costs(CostModel.of_ratio(ratio, per_token=0.03), costs_path(folder, name))
    return folder


def tune(pairs: Path, *options: str) -> list[str]:
    return ["decode", "tune", str(pairs), "--pair", "near", "--corpus", "easy", *options]


def answered(capsys: pytest.CaptureFixture[str]) -> Any:
    """The last line of stdout, as JSON."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_search_ends_with_settings_and_a_report(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tune(pairs, "--budget", "20", "--out", "tuned", "--json")) == 0
    found = answered(capsys)
    assert found["evaluations"] == 20
    assert found["best"]["score"] > 1.5
    assert set(found["best"]["values"]) == {"fallback_threshold", "k"}
    assert found["held_out"]["speedup"] > 1
    page = Path("tuned/report.html").read_text(encoding="utf-8")
    assert "near on easy" in page
    assert "Pareto front" in page
    assert found["summary"].startswith("use fallback_threshold")
    assert found["summary"].removeprefix("use") in page
    assert f"{found['held_out']['speedup']:.2f} × as fast as the target alone" in found["summary"]


def test_an_interrupted_search_resumes(
    pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(tune(pairs, "--budget", "20", "--out", "whole", "--json")) == 0
    whole = answered(capsys)
    run = Tuning.run

    def stopped(self: Tuning, source: Any, folder: Path, **options: Any) -> dict[str, Any]:
        def stop() -> bool:
            log = folder / TRIALS
            return log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= 7

        return run(self, source, folder, **{**options, "stop": stop})

    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "run", stopped)
        assert main(tune(pairs, "--budget", "20", "--out", "parts", "--json")) == INTERRUPTED
    assert answered(capsys)["evaluations"] == 7
    assert main(tune(pairs, "--budget", "20", "--out", "parts", "--json")) == 0
    resumed = answered(capsys)
    assert resumed["best"] == whole["best"]
    assert Path("parts", TRIALS).read_bytes() == Path("whole", TRIALS).read_bytes()


def test_methods_are_compared_and_lessons_kept(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("decode", "evaluate", str(pairs), "--out", "compared", "--seeds", "1", "--budget", "9"),
        *("--methods", "target-only,grid,oracle", "--general", "fixed,general", "--json"),
        *("--clocks", "measured,0.1"),
    ]
    assert main(arguments) == 0
    found = answered(capsys)
    methods = {one["method"]: one for one in found["methods"]}
    assert set(methods) == {
        *("target-only", "grid", "oracle", "fixed, other pairs", "general, other pairs"),
        *("fixed, other corpora", "general, other corpora"),
    }
    assert methods["target-only"]["speedup"]["value"] == 1
    assert methods["oracle"]["regret"]["value"] == 0
    assert methods["grid"]["evaluations"]["value"] == 9
    assert methods["grid"]["speedup"]["pairs"] == 8
    page = Path("compared/report.html").read_text(encoding="utf-8")
    assert "general, other pairs" in page
    assert "draft step 0.1" in page
    assert main(["report", "compared"]) == 0
    lessons = json.loads(Path("compared", LESSONS).read_text(encoding="utf-8"))
    assert len(lessons["lessons"]) == 4 * 2 * 3
    capsys.readouterr()
    before = Path("compared/cells.jsonl").read_bytes()
    assert main(arguments) == 0
    assert answered(capsys)["methods"] == found["methods"]
    assert Path("compared/cells.jsonl").read_bytes() == before


def saved_model(folder: Path, layers: int, words: str = "abcdefghij") -> str:
    """A small random GPT-2 with a tokenizer of single letters."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from trainenv.tools.rng import seeded

    letters = {letter: place for place, letter in enumerate(words)}
    tokens = Tokenizer(WordLevel(letters, unk_token=words[0]))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    shape = {"vocab_size": len(words), "n_positions": 256, "n_embd": 16, "n_head": 2}
    with seeded(0):
        config = GPT2Config(n_layer=layers, bos_token_id=None, eos_token_id=None, **shape)
        GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokens).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join("abcdefghij" * 12 for _ in range(20)), encoding="utf-8")
    return str(path)


def test_a_pair_is_measured_and_its_settings_recommended(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = saved_model(tmp_path / "target", 2)
    draft = saved_model(tmp_path / "draft", 1)
    arguments = ["decode", "recommend", "--target", target, "--draft", draft, "--text", text]
    assert main([*arguments, "--seconds", "0.1", "--out", "advice", "--json"]) == 0
    found = answered(capsys)
    advice = found["recommendation"]
    assert advice["texts"] == 4
    assert 0 <= advice["confidence"] <= 1
    assert advice["low"] <= advice["speedup"] <= advice["high"]
    assert advice["distance"] == 0
    assert found["cost_ratio"] > 0
    assert "target with draft on text" in Path("advice/report.html").read_text(encoding="utf-8")


def test_tokenizers_that_differ_are_named(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = saved_model(tmp_path / "target", 2)
    draft = saved_model(tmp_path / "draft", 1, "abcdefgxyz")
    arguments = ["decode", "recommend", "--target", target, "--draft", draft, "--text", text]
    words = ("same tokenizer", "token 7", "'x'", "'h'")
    capsys.readouterr()  # transformers reports the saving of models
    assert_one_sentence(arguments, words, tmp_path, capsys)


def test_a_draft_is_distilled_and_decodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = saved_model(tmp_path / "target", 3)
    text = tmp_path / "long.txt"
    text.write_text("\n\n".join("abcdefghij" * 12 for _ in range(40)), encoding="utf-8")
    arguments = ["decode", "distill", "--target", target, "--text", str(text), "--layers", "1"]
    arguments += ["--shards", "1", "--steps", "2", "--out", "distilled", "--json"]
    assert main(arguments) == 0
    found = answered(capsys)
    assert found["finished"]
    assert found["tokens"] == 8 * 128
    assert 0 < found["overlap"] <= 1
    shard = Path("distilled/shards/shard_0001.tensors")
    before = shard.stat().st_mtime_ns
    assert main(arguments) == 0  # nothing is left to do
    assert answered(capsys)["overlap"] == found["overlap"]
    assert shard.stat().st_mtime_ns == before
    advised = ["decode", "recommend", "--target", target, "--draft", found["draft"]]
    advised += ["--text", str(text), "--seconds", "0.1", "--out", "advice", "--json"]
    assert main(advised) == 0
    assert answered(capsys)["cost_ratio"] > 0


def test_a_draft_with_all_layers_of_the_target_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = saved_model(tmp_path / "target", 2)
    arguments = ["decode", "distill", "--target", target, "--text", text, "--layers", "2"]
    capsys.readouterr()  # transformers reports the saving of models
    assert_one_sentence([*arguments, "--shards", "1"], ("layers", "2", "fewer"), tmp_path, capsys)


MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "k too large": (["--k", "17"], ("k must be", "16", "17")),
    "k of 0": (["--k", "0"], ("k must be", "0")),
    "rule": (["--rule", "exct"], ("'exct'", "exact")),
    "method": (["--method", "gird"], ("'gird'", "'grid'")),
    "budget": (["--budget", "0"], ("budget", "0")),
    "distance": (["--max-distance", "-1"], ("allowed_distance", "-1")),
    "pair": (["--pair", "nera"], ("'nera'", "'near'", "far")),
    "corpus": (["--corpus", "prose"], ("'prose'", "easy", "hard")),
    "seed": (["--seed", "-1"], ("seed", "-1")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_sentence(
    pairs: Path, mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = MISTAKES[mistake]
    assert_one_sentence(tune(pairs, *options), words, tmp_path, capsys)


def test_a_folder_without_traces_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    words = ("empty/traces", "found none", "trainenv decode trace")
    assert_one_sentence(tune(Path("empty")), words, Path(), capsys)


def test_the_trace_of_another_pair_is_refused(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tune(pairs, "--budget", "4", "--out", "tuned")) == 0
    other = trace_path(pairs, "far", "easy")
    trace_path(pairs, "near", "easy").write_bytes(other.read_bytes())
    capsys.readouterr()
    again = tune(pairs, "--budget", "4", "--out", "tuned")
    assert_one_sentence(again, ("tuned", "origin", "another --out"), Path(), capsys)


def test_a_damaged_trace_is_refused(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace_path(pairs, "near", "easy")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    assert_one_sentence(tune(pairs), ("near--easy", "checksum"), Path(), capsys)


def test_a_configuration_without_models_trains_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("models to train", "trainenv decode trace")
    assert_one_sentence(["decode", "train-pairs", "opt"], words, Path(), capsys)


def test_a_model_that_is_not_trained_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["decode", "trace", "own", "--out", "none"]
    assert_one_sentence(arguments, ("none/models", "train"), Path(), capsys)
