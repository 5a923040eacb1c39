"""Samples as training data: balance, curriculum, labels, duplicates, and a run that trains on them."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainenv import TrainingRun, data
from trainenv.config.schema import CorpusConfig, RunConfig, TaskConfig
from trainenv.data.corpus import Indices
from trainenv.data.tasks import DuplicateFinder, EncodedSamples, Sample
from trainenv.data.tasks.duplicates import normalised
from trainenv.data.tasks.sample_sets import FULL_SIZES, chosen, size
from trainenv.types import IGNORED, UserError

TASKS = CorpusConfig(name="tasks")
SMALL: dict[str, Any] = {"scale": 0.001, "held_out": 20, "difficulties": (1, 4)}
RUN = {
    "corpus.name": "tasks",
    "tasks.scale": 0.001,
    "tasks.held_out": 20,
    "tasks.difficulties": [1, 2],
    "tasks.samples": "balanced",
    "model.context": 80,
    "model.width": 16,
    "steps": 8,
    "monitor.probe_sequences": 4,
}


@pytest.fixture(autouse=True)
def no_samples_in_memory() -> Iterator[None]:
    data.load_samples.cache_clear()
    yield
    data.load_samples.cache_clear()


# ── sample sets and duplicates ────────────────────────────────────────────────────────────────────


def test_the_sizes_are_those_of_the_full_sets_scaled() -> None:
    assert FULL_SIZES == {"right": 150_000, "balanced": 50_000, "curriculum": 150_000}
    assert size("balanced", 1) == 50_000
    assert size("right", 0.01) == 1500
    assert size("right", 1e-9) == 2


@pytest.mark.parametrize(
    ("kind", "right", "wrong"), [("right", 10, 0), ("balanced", 5, 5), ("curriculum", 5, 5)]
)
def test_read_samples_are_chosen_in_balance(kind: Any, right: int, wrong: int) -> None:
    samples = [Sample(str(n), "p", str(n), (True, False, None)[n % 3]) for n in range(60)]
    found = chosen(samples, kind, 10, 0)
    assert [one.is_correct for one in found].count(True) == right
    assert [one.is_correct for one in found].count(False) == wrong
    assert chosen(samples, kind, 10, 0) == found != chosen(samples, kind, 10, 1)


def test_a_set_without_what_it_needs_is_a_sentence() -> None:
    with pytest.raises(UserError, match="found 2 right and 0 wrong"):
        chosen([Sample("t", "p", "s", True)] * 2, "balanced", 4, 0)


def test_exact_and_near_duplicates_are_found() -> None:
    words = "you are given a list of numbers and must find the largest sum of a part of it in linear time"
    train = [
        words.upper().replace(" ", "  ") + ".",
        words + " or else in time n log n",
        "another task with other words that has nothing to do with the first one at all, not a bit",
        "y=3+4",
        "y=3-4",
        "prefix " * 40 + words,
    ]
    overlap = DuplicateFinder(words=6).overlap(train, [words, "Y = 3 + 4"])
    assert overlap.exact == (0, 3)
    assert overlap.near == (1, 5)
    assert overlap.found == {0, 1, 3, 5}
    assert normalised("Y = 3+4!") != normalised("y=3-4!")
    strict = DuplicateFinder(words=6, share=1.0).overlap([words[:60]], [words])
    assert strict.found == frozenset()
    assert DuplicateFinder().overlap(train, []).found == frozenset()


def prompts(samples: EncodedSamples) -> list[str]:
    ends: Indices = samples.prompts
    return [bytes(tokens[:end]).decode() for tokens, end in zip(samples.tokens, ends)]


def test_no_part_repeats_another() -> None:
    corpus = data.load_samples(
        TASKS, TaskConfig(**{**SMALL, "scale": 0.01, "difficulties": (1, 2)})
    )
    parts = {
        name: prompts(getattr(corpus, name)) for name in ("train", "validation", "probe", "test")
    }
    for name in ("validation", "probe", "test"):
        assert len(set(parts[name])) == len(parts[name]) > 10
        for other in parts.values():
            if other is not parts[name]:
                assert not {normalised(one) for one in parts[name]} & {
                    normalised(one) for one in other
                }
    assert not DuplicateFinder().overlap(parts["train"], parts["test"]).found
    # Without the check there would have been some.
    dropped = corpus.dropped["train"]
    assert dropped.exact > 0
    assert corpus.dropped["test"].exact == 0
    assert [task.prompt for task in corpus.test_tasks] == parts["test"]


# ── corpora ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "share"), [("right", 1.0), ("balanced", 0.5), ("curriculum", 0.5)]
)
def test_a_corpus_of_tasks(kind: str, share: float) -> None:
    config = TaskConfig(**SMALL, samples=kind)
    corpus = data.load_samples(TASKS, config)
    assert len(corpus.train) == size(config.samples, config.scale)
    assert corpus.train.rewards.mean() == share
    assert corpus.vocab_size == 256
    assert all(tokens[-1] == corpus.end == 0 for tokens in corpus.train.tokens)
    if kind != "right":
        right, wrong = (prompts(corpus.train)[start::2] for start in (0, 1))
        assert right == wrong  # the critic sees both ends of a prompt
    assert all(
        (getattr(corpus, part).rewards == 1).all() for part in ("validation", "probe", "test")
    )
    data.load_samples.cache_clear()
    again = data.load_samples(TASKS, config)
    assert again is not corpus
    assert again.digest == corpus.digest
    assert (
        data.load_samples(TASKS, TaskConfig(**SMALL, samples=kind, kinds=("sums",))).digest
        != corpus.digest
    )


def sample(n: int, correct: bool | None = True, **more: Any) -> dict[str, Any]:
    return {
        "task": f"t{n}",
        "prompt": f"task number {n}",
        "solution": f"print({n})",
        "is_correct": correct,
        **more,
    }


def problem(n: int) -> dict[str, Any]:
    return {
        "name": f"p{n}",
        "description": f"problem {n}",
        "cf_rating": 800 + n,
        "solutions": {"language": [3, 2], "solution": [f"print({n})", "int main"]},
        "incorrect_solutions": {"language": [1, 3], "solution": ["print 0", f"print({n + 1})"]},
    }


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_samples_are_read_from_one_file(tmp_path: Path) -> None:
    rows = [sample(n, correct) for n in range(200) for correct in (True, False)] + [
        sample(999, None)
    ]
    path = written(tmp_path / "samples.jsonl", rows)
    corpus = data.load_samples(
        CorpusConfig(name="code-contests", path=path), TaskConfig(samples="balanced", held_out=8)
    )
    assert corpus.train.rewards.mean() == 0.5
    assert 250 < len(corpus.train) < 400
    assert not set(prompts(corpus.train)) & set(prompts(corpus.test))
    assert len(corpus.validation) == len(corpus.test) == 8
    assert corpus.test_tasks == ()


def test_problems_are_read_from_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "x-train.jsonl.gz", [problem(n) for n in range(30)] + [problem(105)])
    written(tmp_path / "x-valid.jsonl", [problem(n) for n in range(50, 70)])
    written(tmp_path / "x-test.jsonl", [problem(n) for n in range(100, 110)])
    corpus = data.load_samples(
        CorpusConfig(name="code-contests", path=tmp_path), TaskConfig(samples="balanced")
    )
    assert len(corpus.train) == 60
    assert (
        corpus.dropped["train"].exact == 2
    )  # both samples of the problem that is in the test part
    assert set(corpus.train.difficulties) == {800.0 + n for n in range(30)}
    assert bytes(corpus.train.tokens[0]).decode() == "problem 0\n\nprint(0)\0"
    assert len(corpus.validation) + len(corpus.probe) == 20
    assert min(len(corpus.validation), len(corpus.probe)) > 0


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "x"}, "expected rows with prompt, solution and is_correct"),
        ({"prompt": "x", "is_correct": True}, "the text `solution`"),
        (sample(1, "yes"), "'yes'"),  # type: ignore[arg-type]
        (sample(1, False), "0 right and 1 wrong"),
    ],
)
def test_rows_that_do_not_fit_are_a_sentence(row: dict, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path / "samples.jsonl", [row])
    with pytest.raises(UserError, match=sentence):
        data.load_samples(CorpusConfig(name="code-contests", path=path), TaskConfig())


def test_an_unknown_language_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tasks\.language must be one of python2"):
        data.load_samples(
            CorpusConfig(name="code-contests", path=tmp_path), TaskConfig(language="cobol")
        )


def test_without_the_network_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="connect to the network, or give the path of a local copy"):
        data.load_samples(CorpusConfig(name="code-contests"), TaskConfig())


def test_samples_are_no_text() -> None:
    with pytest.raises(UserError, match="expected a corpus of running text"):
        data.load(TASKS)


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_trains_on_tasks_and_forks() -> None:
    run = TrainingRun.from_config("tiny", RUN)
    before = run.evaluate()
    start = run.snapshot()
    run.advance(8)
    assert run.evaluate() < before
    end = run.fingerprint()
    run.restore(start)
    fork = run.fork()
    fork.advance(8)
    assert fork.fingerprint() == end
    assert run.fingerprint() != end
    assert math.isfinite(
        TrainingRun.from_config("tiny", {**RUN, "validation.test_sequences": 8}).test_loss()
    )


def test_the_loss_counts_solutions_only() -> None:
    run = TrainingRun.from_config("tiny", RUN)
    micro = run.batches(0).micro[0]
    labels = micro["labels"][:, 1:]
    with torch.no_grad():
        logits = run.model(micro["tokens"][:, :-1]).logits.log_softmax(-1)
        loss = float(run.objective(run.model, micro))
    by_hand = [
        -float(logits[row, place, labels[row, place]])
        for row in range(len(labels))
        for place in range(labels.shape[1])
        if labels[row, place] != IGNORED
    ]
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_accumulation_changes_nothing_but_rounding() -> None:
    """Micro-batches with different numbers of labels count by their labels."""
    whole = TrainingRun.from_config("tiny", RUN)
    parts = TrainingRun.from_config("tiny", {**RUN, "accumulation": 4})
    assert whole.advance(1)[0].loss == pytest.approx(parts.advance(1)[0].loss, rel=1e-5)


def test_a_byte_pair_encoding_is_trained_on_the_samples() -> None:
    overrides = {**RUN, "corpus.tokenizer": "bpe", "corpus.vocab_size": 300, "model.context": 48}
    run = TrainingRun.from_config("tiny", overrides)
    assert run.vocabulary == 300
    assert math.isfinite(run.advance(1)[0].loss)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"stressors.artefacts": 0.1}, "no stressors that change tokens, found artefacts"),
        ({"stressors.planted": [{"at": 1, "kind": "random_tokens"}]}, "found random_tokens"),
        ({"model.context": 4}, "samples? of at most 5 tokens"),
        ({"tasks.difficulties": [3, 1]}, "least one first"),
        ({"tasks.kinds": ["poems"]}, "kinds"),
    ],
)
def test_a_run_that_can_not_be_made_is_a_sentence(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainingRun.from_config("tiny", {**RUN, **more})


def test_a_spike_of_the_rate_is_allowed() -> None:
    planted = [{"at": 2, "kind": "lr_spike", "size": 3.0}]
    run = TrainingRun.from_config("tiny", {**RUN, "stressors.planted": planted})
    plain = TrainingRun.from_config("tiny", RUN)
    rates = [[step.lr for step in one.advance(4)] for one in (run, plain)]
    assert rates[0][2] == pytest.approx(3 * rates[1][2])


def test_other_configurations_have_no_samples() -> None:
    assert not RunConfig.load("tiny").corpus.has_samples
