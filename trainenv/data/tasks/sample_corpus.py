"""A corpus of samples: encoded, with held-out tasks that no training sample repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import xxhash

from trainenv.config.corpus import CorpusConfig
from trainenv.config.tasks import TaskConfig
from trainenv.data.documents import Documents
from trainenv.data.tasks import code_contests, sample_sets
from trainenv.data.tasks.duplicates import DuplicateFinder
from trainenv.data.tasks.generator import generate, right_sample
from trainenv.data.tasks.sample_batches import EncodedSamples
from trainenv.data.tasks.task import Sample, Task
from trainenv.data.tokenizers import Bytes, Tokenizer

T = TypeVar("T", Sample, Task)
TASK_SEED = 0  # tasks are those of one corpus, whatever the seed of the run
_ROUNDS = 4  # times that tasks are generated for a part, until there are enough
PARTS = ("test", "probe", "validation", "train")
"""Parts of the corpus; a part never repeats one before it."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Number of tasks or samples that were left out of a part, because they repeat another part.

    Attributes:
        exact: Number of exact duplicates.
        near: Number of near duplicates.
    """

    exact: int
    near: int


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleCorpus:
    """Samples as tokens; it is immutable, and copies share the tokens.

    Attributes:
        name: Name in the configuration.
        train: Samples to train on.
        validation: Right samples for the validation loss.
        probe: Right samples for the clean probe.
        test: Right samples for the test loss.
        test_tasks: Tasks of the test part, for evaluation by their cases; empty where the samples
            were read.
        vocab_size: Number of tokens: one more than the greatest.
        digest: Hash of tokenizer and samples.
        end: Token after a solution.
        dropped: Part → what was left out of it.
    """

    name: str
    train: EncodedSamples = field(repr=False)
    validation: EncodedSamples = field(repr=False)
    probe: EncodedSamples = field(repr=False)
    test: EncodedSamples = field(repr=False)
    test_tasks: tuple[Task, ...] = field(repr=False)
    vocab_size: int
    digest: str
    end: int
    dropped: dict[str, Duplicates]

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleCorpus:
        return self


def load(
    corpus: CorpusConfig, tasks: TaskConfig, tokenizer: Callable[[Documents], Tokenizer]
) -> SampleCorpus:
    """Return the samples of a configuration.

    Args:
        corpus: Source of the samples.
        tasks: Samples that are chosen.
        tokenizer: Function from the training text to the tokenizer.

    Raises:
        UserError: Samples can't be read, or there are too few.
    """
    test_tasks: tuple[Task, ...] = ()
    if corpus.name == "tasks":
        generated, dropped = task_parts(tasks)
        test_tasks = tuple(generated["test"])
        parts = {
            part: [right_sample(task) for task in found]
            for part, found in generated.items()
            if part != "train"
        }
        parts["train"] = sample_sets.of_tasks(generated["train"], tasks.samples)
    else:
        parts, dropped = _read_parts(corpus, tasks)
    texts = [f"{sample.prompt}{sample.solution}".encode() for sample in parts["train"]]
    found = tokenizer(Documents(("train",), partial(_texts, texts)))
    end = end_token(found)
    encoded = {part: encode(samples, found, end) for part, samples in parts.items()}
    digest = xxhash.xxh3_128(found.digest.encode())
    for part in PARTS:
        for sample in parts[part]:
            digest.update(f"{sample.prompt}\0{sample.solution}\0{sample.is_correct}\0".encode())
        digest.update(b"\n")
    return SampleCorpus(
        name=corpus.name,
        train=encoded["train"],
        validation=encoded["validation"],
        probe=encoded["probe"],
        test=encoded["test"],
        test_tasks=test_tasks,
        vocab_size=found.vocab_size,
        digest=digest.hexdigest(),
        end=end,
        dropped=dropped,
    )


def task_parts(tasks: TaskConfig) -> tuple[dict[str, list[Task]], dict[str, Duplicates]]:
    """Return the generated tasks of each part, and what was left out of it.

    Tasks are compared by their prompts. A held-out part has each prompt once. Tasks that are left
    out are replaced by others, as far as there are enough different ones.
    """
    size = sample_sets.size(tasks.samples, tasks.scale)
    if tasks.samples != "right":
        size //= 2  # a task has two samples
    parts: dict[str, list[Task]] = {}
    dropped = {}
    taken: list[str] = []
    for part in PARTS:
        wanted = tasks.held_out
        if part == "train":
            wanted = size
        kept: list[Task] = []
        exact = 0
        near = 0
        for round_ in range(_ROUNDS):
            found = generate(
                seed=TASK_SEED,
                count=wanted,
                kinds=tasks.kinds,
                difficulties=tasks.difficulties,
                part=part,
                start=round_ * wanted,
            )
            others, left_out = _without(found, taken)
            exact += left_out.exact
            near += left_out.near
            kept += others
            if part != "train":
                kept = list({task.prompt: task for task in kept}.values())
            if len(kept) >= wanted:
                break
        parts[part] = kept[:wanted]
        dropped[part] = Duplicates(exact=exact, near=near)
        taken += [task.prompt for task in parts[part]]
    return parts, dropped


def end_token(tokenizer: Tokenizer) -> int:
    """Return the token that follows each solution: 0 for bytes, else the tokenizer's separator."""
    if isinstance(tokenizer, Bytes):
        return 0
    return int(tokenizer.separator[0])


def _read_parts(
    corpus: CorpusConfig, tasks: TaskConfig
) -> tuple[dict[str, list[Sample]], dict[str, Duplicates]]:
    """Return samples that are read, and what was left out of each part."""
    count = sample_sets.size(tasks.samples, tasks.scale)
    read = code_contests.read(corpus.path, tasks.language, count, tasks.held_out)
    parts: dict[str, list[Sample]] = {}
    dropped = {}
    taken: list[str] = []
    for part in PARTS:
        parts[part], dropped[part] = _without(read[part], taken)
        taken += dict.fromkeys(sample.prompt for sample in parts[part])
    parts["train"] = sample_sets.chosen(parts["train"], tasks.samples, count, TASK_SEED)
    for part in PARTS[:-1]:
        parts[part] = sample_sets.chosen(parts[part], "right", tasks.held_out, TASK_SEED)
    return parts, dropped


def _without(items: Sequence[T], taken: Sequence[str]) -> tuple[list[T], Duplicates]:
    """Return the items whose prompts repeat none of `taken`, and the number of the others."""
    overlap = DuplicateFinder().overlap([item.prompt for item in items], taken)
    found = overlap.found
    kept = [item for place, item in enumerate(items) if place not in found]
    return kept, Duplicates(exact=len(overlap.exact), near=len(overlap.near))


def encode(samples: Sequence[Sample], tokenizer: Tokenizer, end: int) -> EncodedSamples:
    """Return samples as tokens, each with the end token."""
    prompts = tokenizer.encode([sample.prompt.encode() for sample in samples])
    solutions = tokenizer.encode([sample.solution.encode() for sample in samples])
    last = np.array([end], prompts[0].dtype if prompts else np.uint8)
    return EncodedSamples(
        tokens=[np.concatenate([p, s, last]) for p, s in zip(prompts, solutions)],
        prompts=np.array([len(prompt) for prompt in prompts], np.int64),
        rewards=np.array([sample.reward for sample in samples], np.float32),
        difficulties=np.array([sample.difficulty for sample in samples], np.float64),
        padding=end,
    )


def _texts(texts: Sequence[bytes], shard: int) -> Iterator[bytes]:
    yield from texts
