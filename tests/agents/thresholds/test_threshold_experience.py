"""Lessons in files: what is shipped, what is written, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainenv.agents.thresholds.adaptive_choice import AdaptiveChoice
from trainenv.agents.thresholds.experience import (
    Experience,
    load_experience,
    save_experience,
)
from trainenv.agents.thresholds.meta import Kernel, learn
from trainenv.agents.thresholds.tasks import CONTEXT, DecodingTask, split
from trainenv.decoding.traces import CostModel, synthetic_trace
from trainenv.types import UserError


def test_shipped_lessons_make_a_policy_that_knows_what_a_draft_costs() -> None:
    lessons = load_experience(None, "exact", 16).lessons
    assert len({lesson.pair for lesson in lessons}) >= 3
    assert len({lesson.corpus for lesson in lessons}) >= 3
    assert all(lesson.shares.max() == 1 for lesson in lessons)
    policy = Kernel.fit(lessons)
    by_cost = sorted(lessons, key=lambda lesson: lesson.context[CONTEXT.index("ln cost ratio")])
    cheap = lessons[0].space.values(policy.settle(by_cost[0].context))["k"]
    dear = lessons[0].space.values(policy.settle(by_cost[-1].context))["k"]
    assert cheap > dear


def test_lessons_of_another_rule_or_length_are_left_out() -> None:
    assert load_experience(None, "lossy", 16).lessons == ()
    assert load_experience(None, "exact", 8).lessons == ()


def test_lessons_are_read_as_they_were_written(tmp_path: Path) -> None:
    first, second = split(synthetic_trace(rows=4, positions=24), 0)
    task = DecodingTask(
        pair="a", corpus="b", trace=first, held_out=second, costs=CostModel.of_ratio(0.1)
    )
    written = Experience(
        lessons=tuple(learn(task, (1.0, 2.0))), choice=AdaptiveChoice(memory=0.5, threshold=0.3)
    )
    save_experience(written, tmp_path / "lessons.json", rule="exact", k=16)
    read = load_experience(tmp_path / "lessons.json", "exact", 16)
    assert read.choice == written.choice
    for old, new in zip(written.lessons, read.lessons, strict=True):
        assert (new.pair, new.corpus, new.space) == (old.pair, old.corpus, old.space)
        np.testing.assert_allclose(new.shares, old.shares, atol=1e-4)
        np.testing.assert_allclose(new.context, old.context, atol=1e-5)


@pytest.mark.parametrize("change", [{"format": "other"}, {"context": []}, {"lessons": [{}]}])
def test_a_file_of_another_format_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "lessons.json"
    save_experience(Experience(), path, rule="exact", k=16)
    path.write_text(json.dumps(json.loads(path.read_text()) | change), encoding="utf-8")
    with pytest.raises(UserError, match="trainenv decode evaluate"):
        load_experience(path, "exact", 16)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json"):
        load_experience(tmp_path / "none.json", "exact", 16)
