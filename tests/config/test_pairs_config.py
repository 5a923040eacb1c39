"""Configurations of model pairs: the shipped ones, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainenv.config.decoding import PairsConfig, shipped_folder
from trainenv.types import UserError

SMALLEST: dict[str, Any] = {
    "pairs": [{"name": "a", "target": "one", "draft": "two"}],
    "corpora": [{"name": "sums", "source": "arithmetic"}],
}


def load(tmp_path: Path, values: dict[str, Any]) -> PairsConfig:
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(values))
    return PairsConfig.load(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped_folder().glob("*.yaml")))
def test_shipped_configurations_load(name: str) -> None:
    config = PairsConfig.load(name)
    assert PairsConfig.load(config) is config
    assert len(config.corpora) >= 3
    for pair in config.pairs:
        if config.models:
            assert pair.target in config.models


def test_own_pairs_have_different_size_ratios_and_first_layers() -> None:
    config = PairsConfig.load("own")
    assert len(config.pairs) >= 4
    assert any(pair.first_layers for pair in config.pairs)


def test_the_seed_s_pairs_are_those_of_opt() -> None:
    config = PairsConfig.load("opt")
    assert {(pair.target, pair.draft) for pair in config.pairs} == {
        ("facebook/opt-6.7b", "facebook/opt-1.3b"),
        ("facebook/opt-6.7b", "facebook/opt-125m"),
    }
    assert [corpus.source for corpus in config.corpora] == ["lambada", "wikitext-103", "c4"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairs": [{"name": "a", "target": "one"}]}, "either draft or first_layers, found nei"),
        (
            {"pairs": [{"name": "a", "target": "one", "draft": "b", "first_layers": 1}]},
            "either draft or first_layers, found both",
        ),
        ({"pairs": []}, "pairs"),
        ({"pairs": [*SMALLEST["pairs"], *SMALLEST["pairs"]]}, "pairs must have different names"),
        ({"corpora": [{"name": "t", "source": "text"}]}, "must have a path"),
        ({"trace": {"depth": 17}}, "less than or equal to 16"),
        ({"trace": {"row": 1}}, "unknown key 'trace.row'"),
        (
            {"models": {"m": {"width": 8, "layers": 1, "heads": 2, "steps": 1}}, "context": 100},
            "room for prompt, text and blocks",
        ),
        ({"models": {"m": {"width": 9, "layers": 1, "heads": 2, "steps": 1}}}, "multiple of heads"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, SMALLEST | change)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown pairs 'onw'; did you mean 'own'\?"):
        PairsConfig.load("onw")
