"""Trunks: balanced, prefix-stable, pure; and the corpora that they train on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from trainenv.config.schema import RunConfig
from trainenv.types import CLIP_NAMES, UserError
from trainenv.worldmodel.dataset import SIZES, Trunk, sample
from trainenv.worldmodel.dataset.faults import FAULT_KINDS, Fault
from trainenv.worldmodel.dataset.texts import CORPORA, write_texts
from trainenv.worldmodel.dataset.trunks import STRESSORS, VALIDATION_TOKENS


def test_a_larger_sample_starts_with_a_smaller_one() -> None:
    assert sample(30, seed=3)[:7] == sample(7, seed=3)
    assert sample(5, seed=3, first=7) == sample(12, seed=3)[7:]
    assert sample(7, seed=4) != sample(7, seed=3)


def test_every_level_is_there_and_a_quarter_is_clean_and_well_set() -> None:
    trunks = sample(240, seed=0)
    clean = [trunk for trunk in trunks if trunk.setting == "clean"]
    assert len(clean) == 60
    assert all(
        not trunk.faults and not trunk.stressor and 0.7 < trunk.lr_factor < 1.4 for trunk in clean
    )
    assert set(Counter(trunk.clip for trunk in trunks).values()) == {60}
    assert {trunk.clip for trunk in trunks} == set(CLIP_NAMES)
    assert {trunk.corpus for trunk in trunks} == set(CORPORA)
    assert {trunk.size for trunk in trunks} == set(SIZES)
    for stressor in STRESSORS:
        assert sum(trunk.stressor == stressor for trunk in trunks) >= 6
    for kind in FAULT_KINDS:
        assert sum(kind in {fault.kind for fault in trunk.faults} for trunk in trunks) >= 15
    assert min(trunk.lr_factor for trunk in trunks) < 0.3
    assert max(trunk.lr_factor for trunk in trunks) > 28
    assert all(
        min(200, trunk.size.most_steps) <= trunk.steps <= min(800, trunk.size.most_steps)
        for trunk in trunks
    )
    assert len({trunk.steps for trunk in trunks}) > 100
    assert (
        min(size.parameters for size in SIZES)
        < 25_000
        < 800_000
        < max(size.parameters for size in SIZES)
    )
    kicks = [
        fault.size
        for trunk in trunks
        for fault in trunk.faults
        if fault.kind in ("weight_kick", "lr_spike")
    ]
    assert 4 <= min(kicks) < 8 < 40 < max(kicks) <= 60


def test_faults_come_in_order_and_leave_room_before_and_after() -> None:
    for trunk in sample(200, seed=1):
        ends = [0]
        for fault in trunk.faults:
            assert fault.at >= max(ends[-1], 0.14 * trunk.steps)
            ends.append(fault.end)
        assert ends[-1] <= 0.95 * trunk.steps


def test_a_trunk_is_its_json() -> None:
    for trunk in sample(16, seed=2):
        assert Trunk.from_json(json.loads(json.dumps(trunk.to_json()))) == trunk


def test_every_trunk_is_a_valid_configuration(tmp_path: Path) -> None:
    texts = write_texts(tmp_path)
    for trunk in sample(64, seed=5):
        config = RunConfig.load("tiny", trunk.overrides(texts))
        assert config.optimizer.lr == trunk.size.lr * trunk.lr_factor
        assert len(config.stressors.planted) <= len(trunk.faults)
        assert (
            config.validation.sequences * config.model.context == VALIDATION_TOKENS
        )  # no size is measured better


def test_texts_are_written_once_and_are_real(tmp_path: Path) -> None:
    texts = write_texts(tmp_path)
    paths = [Path(texts[name]["path"]) for name in ("topics", "words")]
    before = [path.stat().st_mtime_ns for path in paths]
    assert write_texts(tmp_path) == texts
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert all(path.stat().st_size > 300_000 for path in paths)
    assert len(set(paths[1].read_text().replace(".", "").split())) == 600
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_trunk_is_refused() -> None:
    with pytest.raises(UserError, match="at least 40"):
        sample(1, seed=0, steps=(10, 20))
    with pytest.raises(UserError, match="kind of a fault"):
        Fault(kind="meteor", at=3)  # type: ignore[arg-type]
