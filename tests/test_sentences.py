"""The rules for sentences in docstrings: how a summary begins, and entries that stand alone."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainenv", "planners", "worldmodel", "agents")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    return module


sentences = load("house_sentences")


def test_docstrings_keep_the_rules() -> None:
    """The places: `python benchmarks/house.py --list summaries`, or `fragments`."""
    files = {file.resolve() for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    assert len(files) > 40
    found = []
    for file in sorted(files):
        for text in sentences.docstrings(ast.parse(file.read_text(encoding="utf-8"))):
            if text.asks() or list(text.fragments()):
                found.append(f"{file.relative_to(ROOT)}: {text}")
    assert not found


def written(summary: str, *entries: str) -> str:
    """The source of a function with a docstring."""
    lines = [summary, "", "Args:", *(f"    {entry}" for entry in entries)]
    return 'def f():\n    """' + "\n    ".join(lines) + '\n    """\n'


@pytest.mark.parametrize(
    "summary",
    [
        "What a run may use.",
        "Whether it is saved.",
        "Of the process.",
        "How it is verified.",
        "As a draft of one.",
        "Where it starts.",
        "That which is kept.",
        "Who steers it.",
        "When it was saved.",
        "whether it is saved.",
    ],
)
def test_a_summary_that_begins_with_a_question_word_is_found(summary: str) -> None:
    (text,) = sentences.docstrings(ast.parse(written(summary)))
    assert text.asks()


OTHERS = ["Return the loss.", "Whole steps.", "The run, as it is.", "As-is copy of a run."]


@pytest.mark.parametrize("summary", OTHERS)
def test_other_summaries_are_not(summary: str) -> None:
    (text,) = sentences.docstrings(ast.parse(written(summary)))
    assert not text.asks()


@pytest.mark.parametrize(
    "entry",
    [
        "config: of the runs that they are of.",
        "stop: asked after each block.",
        "save: whether the state is saved.",
        "step: that it was saved at.",
        "count: how many.",
        "flops: By purpose.",
        "run: forked.",
        "lr, weight_decay: of AdamW.",
        "path (Path): where it is; None for nowhere.",
        "folder:\n            of everything.",
        "folder: of everything,\n            and a long entry: it goes further.",
    ],
)
def test_a_fragment_is_found_with_its_line(entry: str) -> None:
    source = written("Return the loss.", "seed: random seed.", entry)
    (text,) = sentences.docstrings(ast.parse(source))
    ((line, found),) = text.fragments()
    name = entry.partition(":")[0]
    assert found.startswith(f"{name}: ")
    assert source.splitlines()[line - 1].strip().startswith(f"{name}:")


@pytest.mark.parametrize(
    "entry",
    [
        "config: configuration of the runs.",
        "needed: needed steps, at least 1.",
        "seed: seed of the data.",
        "folder: in-memory folder.",
        "steps: [n] steps, in order.",
        "losses: trained losses,\n            of each run: one a step.",
    ],
)
def test_entries_that_stand_alone_are_not(entry: str) -> None:
    (text,) = sentences.docstrings(ast.parse(written("Return the loss.", entry)))
    assert len(list(text.entries())) == 1
    assert not list(text.fragments())


def test_only_arguments_and_attributes_are_entries() -> None:
    source = '"""Two runs.\n\n    of: no entry.\n\nRaises:\n    UserError: of nothing.\n"""'
    (text,) = sentences.docstrings(ast.parse(source))
    assert not list(text.entries())


def test_words_to_avoid_are_found_with_their_lines() -> None:
    source = '"""A run that goes\non.\n\nNobody is told: besides, it untold-ly understands.\n"""'
    (text,) = sentences.docstrings(ast.parse(source))
    assert list(text.words()) == [(1, "goes on"), (4, "Nobody"), (4, "told")]
