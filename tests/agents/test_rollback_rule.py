"""The rule that people follow at night: how far back, what is dropped, what is cut, and when it gives up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.bigram import tokens
from trainenv import CheckpointStore, TrainingConfig, TrainingRun
from trainenv.agents.baselines.rollback_rule import STYLES, RollbackRule
from trainenv.config.schema import CheckpointConfig
from trainenv.loop import Callback, CallbackResult, resume, train
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.records.run_folder import RunFolder, read_events
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import Event, Reading, Telemetry, UserError

LR, FINAL = 1e-2, 0.1


def toy(steps: int, lr_bounds: tuple[float, float] = (0.01, 10.0)) -> TrainingRun:
    """A run of a few thousand steps a second; its alarms are those of `Triggers`."""
    torch.manual_seed(0)
    model = nn.Embedding(8, 8)
    config = TrainingConfig(
        steps=steps,
        clip={"policy": "none"},
        schedule={"kind": "cosine", "warmup": 0, "final": FINAL},
        validation={"every": 0},
        monitor={"block": 8, "probe_every": 0},
        interventions={"lr_bounds": lr_bounds},
    )
    return TrainingRun(
        model,
        torch.optim.AdamW(model.parameters(), lr=LR),
        tokens,
        config,
        validation=[tokens(10**6)],
    )


class Triggers:
    """In place of the uncertainty index: each of `steps` fires the first time that the run comes by, `always` every time."""

    def __init__(self, steps: Iterable[int], always: Iterable[int] = ()) -> None:
        self._left, self._always = list(steps), set(always)

    def update(self, telemetry: Telemetry) -> Reading:
        fired = telemetry.step in self._always or telemetry.step in self._left
        if telemetry.step in self._left:
            self._left.remove(telemetry.step)
        return Reading(index=9.0 if fired else 0.0, threshold=3.0, fired=fired)

    def put_in(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(UncertaintyIndex, "update", lambda index, telemetry: self.update(telemetry))


@dataclass
class Watched(Callback):
    """The rule, and a check after each block of all that must hold whatever happens."""

    rule: RollbackRule
    line: list[Telemetry] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    rewinds: list[Event] = field(default_factory=list)

    def on_train_begin(
        self, run: TrainingRun, folder: RunFolder, store: CheckpointStore, /
    ) -> None:
        self.rule.on_train_begin(run, folder, store)

    def state_dict(self) -> dict[str, Any]:
        return self.rule.state_dict()

    def on_block_end(self, run: TrainingRun, window: Sequence[Telemetry], /) -> CallbackResult:
        assert not self.dropped & {t.data_index for t in window}
        self.line += window
        lr_scale, end, step = run.lr_scale, run.horizon.end, run.step
        response = self.rule.on_block_end(run, window)
        events = response.events
        low, high = run.config.interventions.lr_bounds
        assert low <= run.lr_scale <= high
        assert len(self.rule._snapshots) <= self.rule.keep
        alarm = next((t for t in window if t.reading.fired), None)
        if not events:
            assert (run.lr_scale, run.horizon.end, run.step) == (lr_scale, end, step)
            return response
        assert alarm is not None
        (event,) = events
        assert (event.kind, event.step) == ("rewind", step)
        assert run.step == event.detail["to"] <= alarm.step - self.rule.rewind
        assert run.horizon.end == end - (step - run.step)
        before = next((t.lr_scale for t in reversed(self.line) if t.step == run.step), 1.0)
        assert event.detail["lr_scale"] == run.lr_scale <= before
        if self.rule.drops:
            self.dropped |= {
                t.data_index
                for t in self.line
                if t.step > max(alarm.step - self.rule.skip, run.step)
            }
        self.line = [t for t in self.line if t.step <= run.step]
        self.rewinds.append(event)
        assert len(self.rewinds) <= self.rule.patience
        return response


def driven(
    patch: pytest.MonkeyPatch, path: Path, rule: RollbackRule, alarms: Triggers, run: TrainingRun
) -> tuple[Watched, dict[str, Any]]:
    alarms.put_in(patch)
    watched = Watched(rule)
    summary = train(run, RunFolder.create(path, run.config), callback=watched)
    assert summary["ended"] == "budget spent"
    assert summary["rewinds"] == len(watched.rewinds)
    return watched, summary


# ── one alarm ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("alarm", "to"),
    [
        (17, None),
        (23, None),
        (24, 8),
        (31, 8),
        (32, 16),
        (45, 24),
        (48, 32),
        (56, 40),
        (64, 48),
        (72, 56),
        (80, 64),
    ],
)
def test_goes_back_to_the_newest_snapshot_far_enough_behind(
    alarm: int, to: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Blocks of 8 end at 8, 16, …; none is remembered where it fired."""
    rule = RollbackRule(rewind=16, every=8, keep=10, skip=4)
    watched, summary = driven(monkeypatch, tmp_path / "run", rule, Triggers([alarm]), toy(96))
    assert [event.detail["to"] for event in watched.rewinds] == ([] if to is None else [to])
    seen_at = -(-alarm // 8) * 8
    assert summary["step"] == (96 if to is None else 96 - (seen_at - to))


def test_drops_the_data_around_the_alarm_and_trains_the_rest_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = RollbackRule(rewind=16, every=8, keep=10, skip=4)
    watched, _ = driven(monkeypatch, tmp_path / "run", rule, Triggers([45]), toy(96))
    rows = read_telemetry(tmp_path / "run")
    again = list(rows[rows["line"] == 1]["data_index"])
    seen = set(range(41, 48))  # the steps after 45 − 4, to the end of the block
    assert not seen & set(again)
    assert again[: 41 - 24] == list(range(24, 41))
    assert again == sorted(again)
    assert set(range(24, again[-1] + 1)) - set(again) <= set(range(41, 50))
    assert (
        watched.rewinds[0].detail["skipped"] == 8
    )  # 41 to 48: four steps before the alarm, and as many after


@pytest.mark.parametrize(("skip", "dropped"), [(3, (42, 47)), (8, (37, 52)), (16, (29, 60))])
def test_drops_as_much_after_the_alarm_as_before_it(
    skip: int, dropped: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also what had not been trained on yet. Step 45 saw data 44."""
    rule = RollbackRule(rewind=16, every=8, keep=10, skip=skip)
    driven(monkeypatch, tmp_path / "run", rule, Triggers([45]), toy(160))
    rows = read_telemetry(tmp_path / "run")
    again = list(rows[rows["line"] == 1]["data_index"])
    first, last = dropped
    assert set(range(24, again[-1] + 1)) - set(again) == set(range(first, last + 1)), again


def test_skips_nothing_where_it_shall_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the data before the alarm, that is: what the index itself flagged is dropped all the same."""
    driven(
        monkeypatch,
        tmp_path / "run",
        RollbackRule(rewind=16, every=8, skip=0),
        Triggers([48]),
        toy(96),
    )
    rows = read_telemetry(tmp_path / "run")
    assert list(rows[rows["line"] == 1]["data_index"])[:15] == list(range(32, 47))
    assert 47 not in set(rows[rows["line"] == 1]["data_index"])


def test_cuts_the_learning_rate_and_still_ends_annealed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = RollbackRule(rewind=16, every=8, lr_scale=0.5)
    _, summary = driven(monkeypatch, tmp_path / "run", rule, Triggers([45]), toy(96))
    rows = read_telemetry(tmp_path / "run", kept_only=True)
    assert list(rows["step"]) == list(range(1, summary["step"] + 1))
    assert summary["step"] == 96 - 24
    assert list(rows["lr_scale"]) == [1.0] * 24 + [0.5] * 48
    # Progress is the same on both sides of the rewind; the learning rate is half of what it would have been.
    assert rows["progress"][24] == pytest.approx(24 / 96)
    assert rows["progress"].is_monotonic_increasing
    assert summary["final_learning_rate"] == pytest.approx(LR * FINAL * 0.5, rel=0.05)


def test_a_factor_of_one_leaves_the_learning_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driven(
        monkeypatch,
        tmp_path / "run",
        RollbackRule(rewind=16, every=8, lr_scale=1.0),
        Triggers([45]),
        toy(96),
    )
    assert set(read_telemetry(tmp_path / "run")["lr_scale"]) == {1.0}
    assert [e["kind"] for e in read_events(tmp_path / "run")] == ["fired", "rewind"]


def test_without_an_alarm_it_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, summary = driven(
        monkeypatch,
        tmp_path / "run",
        RollbackRule(rewind=16, every=8),
        Triggers([]),
        run := toy(64),
    )
    straight = toy(64)
    straight.advance(64)
    assert run.fingerprint() == straight.fingerprint()
    assert summary["flops"]["rewound"] == 0


def test_compute_that_was_rewound_is_on_the_ledger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, summary = driven(
        monkeypatch, tmp_path / "run", RollbackRule(rewind=16, every=8), Triggers([45]), toy(96)
    )
    flops = summary["flops"]
    assert flops["rewound"] / (flops["rewound"] + flops["main"]) == pytest.approx(24 / 96)


# ── many alarms ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_patience_bounds_the_answers(
    patience: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = RollbackRule(rewind=8, every=8, patience=patience)
    watched, summary = driven(
        monkeypatch, tmp_path / "run", rule, Triggers([], always=[40]), toy(160)
    )
    assert len(watched.rewinds) == patience
    assert summary["fired"] == patience + 1


def test_learning_rate_never_leaves_its_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = RollbackRule(rewind=8, every=8, skip=0, patience=50)
    alarms = Triggers(range(40, 240, 20))
    watched, _ = driven(monkeypatch, tmp_path / "run", rule, alarms, toy(400, lr_bounds=(0.5, 2.0)))
    lowest = read_telemetry(tmp_path / "run")["lr_scale"].min()
    assert len(watched.rewinds) > 4
    assert lowest == pytest.approx(0.5)  # 0.8 ** 4 would come below it
    assert watched.rewinds[-1].detail["lr_scale"] == pytest.approx(0.5)


def test_a_second_answer_cuts_deeper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From what was in force at the alarm, though each goes back to step 24, before the first; a fifth would cost the end."""
    rule = RollbackRule(rewind=16, every=8, keep=10, skip=4, lr_scale=0.5)
    watched, _ = driven(monkeypatch, tmp_path / "run", rule, Triggers([], always=[45]), toy(160))
    assert [(e.detail["to"], e.detail["lr_scale"]) for e in watched.rewinds] == [
        (24, 0.5**n) for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("alarm", [81, 88, 94, 96])
def test_an_alarm_too_near_the_end_is_left_alone(
    alarm: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Going back would cost more steps than are left: the run would stop far back, before it is annealed."""
    rule = RollbackRule(rewind=16, every=8, skip=4)
    watched, summary = driven(
        monkeypatch, tmp_path / "run", rule, Triggers([alarm]), run := toy(96)
    )
    assert watched.rewinds == []
    assert (summary["fired"], summary["rewinds"], summary["step"]) == (1, 0, 96)
    straight = toy(96)
    straight.advance(96)
    assert torch.equal(run.model.weight, straight.model.weight)
    assert read_telemetry(tmp_path / "run")["progress"].iloc[-1] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("alarms", [[72], [80], [94], [40, 60], [70, 72, 75]])
def test_whenever_it_answers_the_run_ends_annealed(
    alarms: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driven(
        monkeypatch,
        tmp_path / "run",
        RollbackRule(rewind=16, every=8, lr_scale=1.0),
        Triggers(alarms),
        toy(96),
    )
    rows = read_telemetry(tmp_path / "run", kept_only=True)
    assert rows["progress"].iloc[-1] == pytest.approx(1, abs=0.1)
    assert rows["lr"].iloc[-1] == pytest.approx(LR * FINAL, rel=0.3)


def test_what_it_remembers_is_of_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Serving a second run, it is as good as new: no snapshot, no patience lost, no data of the first."""
    settings = {"rewind": 16, "every": 8, "keep": 10, "skip": 4, "patience": 1}
    rule = RollbackRule(**settings)
    driven(monkeypatch, tmp_path / "first", rule, Triggers([45]), toy(96))
    other = toy(96)
    config = other.config.model_copy(update={"seed": 1})
    second = TrainingRun(other.model, other.optimizer, tokens, config, validation=[tokens(1)])
    watched, _ = driven(monkeypatch, tmp_path / "second", rule, Triggers([10, 44]), second)
    assert [event.detail["to"] for event in watched.rewinds] == [24]

    torch.manual_seed(0)
    other = toy(96)
    second = TrainingRun(other.model, other.optimizer, tokens, config, validation=[tokens(1)])
    fresh, _ = driven(
        monkeypatch, tmp_path / "fresh", RollbackRule(**settings), Triggers([10, 44]), second
    )
    assert fresh.rewinds == watched.rewinds


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keeps_so_many_snapshots(
    keep: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = RollbackRule(rewind=8, every=16, keep=keep)
    driven(monkeypatch, tmp_path / "run", rule, Triggers([]), toy(128))
    steps = [snapshot.step for snapshot in rule._snapshots]
    assert len(steps) == keep
    assert steps == sorted(steps)
    assert all(later - earlier >= 16 for earlier, later in pairwise(steps))


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.integers(40, 100),
    once=st.lists(st.integers(1, 100), max_size=6),
    always=st.lists(st.integers(20, 100), max_size=2),
    rule=st.builds(
        RollbackRule,
        rewind=st.integers(1, 40),
        every=st.integers(1, 24),
        keep=st.integers(1, 6),
        skip=st.integers(0, 30),
        lr_scale=st.sampled_from([0.3, 0.8, 1.0]),
        patience=st.integers(0, 6),
    ),
)
def test_whatever_happens_it_ends_within_bounds(
    steps: int,
    once: list[int],
    always: list[int],
    rule: RollbackRule,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """`Watched` holds what must hold after each block; the budget is spent exactly, on kept and rewound steps together."""
    path = tmp_path_factory.mktemp("by_hand") / "run"
    with pytest.MonkeyPatch.context() as patch:
        watched, summary = driven(
            patch, path, rule, Triggers(once, always), toy(steps, lr_bounds=(0.5, 2.0))
        )
    rows, kept = read_telemetry(path), read_telemetry(path, kept_only=True)
    assert len(rows) == steps
    assert list(kept["step"]) == list(range(1, summary["step"] + 1))
    assert kept["data_index"].is_unique
    assert summary["step"] == steps - sum(e.step - e.detail["to"] for e in watched.rewinds)


# ── hyperparameters ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rewind", 0),
        ("every", 0),
        ("keep", 0),
        ("keep", -1),
        ("skip", -1),
        ("lr_scale", 0.0),
        ("lr_scale", -0.5),
        ("lr_scale", 1.1),
        ("lr_scale", float("nan")),
    ],
)
def test_bad_hyperparameters(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name) as error:
        RollbackRule(**{name: value})
    assert "expected" in str(error.value) or "must" in str(error.value)
    assert f"{name}={value}" in str(error.value)


def test_hyperparameters_by_name_only() -> None:
    with pytest.raises(TypeError):
        RollbackRule(50)  # type: ignore[misc]
    assert repr(RollbackRule(rewind=7)).startswith(
        "RollbackRule(rewind=7, every=50, keep=8, skip=16, lr_scale=0.8, patience=10"
    )


# ── how two teams did it ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(STYLES))
@pytest.mark.parametrize("steps", [16, 1600, 16_000])
def test_styles_are_scaled_to_the_run(name: str, steps: int) -> None:
    rule, style = RollbackRule.in_style(name, steps), STYLES[name]
    scale = steps / 16_000
    assert rule.rewind == max(1, round(style.rewind * scale))
    assert rule.every == max(1, round(style.every * scale))
    assert rule.skip == (0 if style.skip is None else max(1, round(style.skip * scale)))
    if steps == 16_000:
        assert (rule.rewind, rule.lr_scale) == {"palm": (100, 1.0), "opt": (500, 0.8)}[name]
        assert 200 <= 2 * rule.skip <= 500 or name == "opt"


def test_no_such_style() -> None:
    with pytest.raises(UserError, match=r"palm, opt.*plam.*palm"):
        RollbackRule.in_style("plam", 100)


def test_palm_leaves_the_rate_and_opt_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("palm", "opt"):
        rule = RollbackRule.in_style(name, 1600)
        rule.every = rule.rewind = 8
        watched, _ = driven(monkeypatch, tmp_path / name, rule, Triggers([45, 90]), toy(200))
        rows = read_telemetry(tmp_path / name)
        to = [event.detail["to"] for event in watched.rewinds]
        assert len(to) == 2
        after = rows[rows["line"] == 2]
        if name == "palm":
            assert set(rows["lr_scale"]) == {1.0}
            assert set(rows["clip"]) == {"none"}
            assert all(event.detail["skipped"] for event in watched.rewinds)
        else:
            assert set(after["lr_scale"]) == {0.8**2}
            assert list(after["data_index"])[:4] == list(
                range(to[1], to[1] + 4)
            )  # nothing is dropped
            assert set(rows[rows["line"] == 1]["clip"]) == {"none"}
            assert set(after["clip"]) == {"zclip"}  # from the second answer on


def test_nobody_goes_in_circles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An alarm that comes again at its place is answered twice; one elsewhere starts anew."""
    rule = RollbackRule(rewind=8, every=8, skip=2, repeats=2)
    watched, _ = driven(
        monkeypatch, tmp_path / "run", rule, Triggers([100], always=[45, 150]), toy(400)
    )
    assert [event.step for event in watched.rewinds] == [48, 48, 104, 152, 152]


@pytest.mark.parametrize("killed_at", [72])
def test_it_goes_on_to_the_same_end_after_a_kill(
    killed_at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where its snapshots are regular checkpoints too."""
    settings = {"rewind": 16, "every": 8, "keep": 10, "skip": 4, "lr_scale": 0.5, "repeats": 1}

    def made() -> TrainingRun:
        other = toy(160)
        config = other.config.model_copy(
            update={"checkpoints": CheckpointConfig(every=8, keep_last=50, moments="exact")}
        )
        return TrainingRun(other.model, other.optimizer, tokens, config, validation=[tokens(10**6)])

    Triggers([], always=[45, 85]).put_in(monkeypatch)
    straight, run, again = made(), made(), made()
    train(
        straight,
        RunFolder.create(tmp_path / "whole", straight.config),
        callback=RollbackRule(**settings),
    )
    train(
        run,
        RunFolder.create(tmp_path / "run", run.config),
        callback=RollbackRule(**settings),
        stop=lambda: run.step >= killed_at,
    )
    rule = RollbackRule(**settings)
    folder, _ = resume(tmp_path / "run", again, rule)
    train(again, folder, callback=rule)
    assert [
        e["detail"]["to"] for e in read_events(tmp_path / "whole") if e["kind"] == "rewind"
    ] == [24, 64]
    assert again.fingerprint() == straight.fingerprint()
