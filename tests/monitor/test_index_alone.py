"""The index in a loop of one's own: by name, without a probe, with no length known, after a rewind, from an older state."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.strict_json import strict
from trainenv import TrainingRun, UncertaintyIndex
from trainenv.config.presets import find, read_yaml
from trainenv.config.schema import RunConfig, UncertaintyConfig
from trainenv.types import Telemetry, UserError

NUMBERS = read_yaml(find("uncertainty"))


def index(steps: int | None = None, **changes: Any) -> UncertaintyIndex:
    return UncertaintyIndex(UncertaintyConfig(**{**NUMBERS, **changes}), steps=steps)


def telemetry(step: int, loss: float, grad_norm: float = 1.0, **more: float) -> Telemetry:
    return Telemetry(
        step,
        step,
        8,
        loss,
        grad_norm,
        1.0,
        math.inf,
        0.0,
        "none",
        0.1,
        1.0,
        0.1,
        1.0,
        -1,
        0.0,
        **more,
    )


def calm(steps: int, seed: int = 0, noise: str = "normal") -> list[tuple[float, float]]:
    """Loss and gradient norm of a run whose mean falls, fast at first and for ever slowly."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    draw = {"normal": rng.standard_normal, "heavy": lambda n: rng.standard_t(3, n)}[noise]
    step = np.arange(steps)
    losses = 2 + 3 * np.exp(-step / 400) + 2 * np.exp(-step / 6000) + 0.05 * draw(steps)
    norms = np.exp(0.2 * draw(steps)) * (1 + 0.5 * np.exp(-step / 2000))
    return list(zip(losses.tolist(), norms.tolist()))


def fed(
    made: UncertaintyIndex, values: list[tuple[float, float]], only_loss: bool = False
) -> list[int]:
    """The steps at which it fires, from the step after its last."""
    fired = []
    for loss, norm in values:
        reading = made.update(loss=loss) if only_loss else made.update(loss=loss, grad_norm=norm)
        fired += [made._step] if reading.fired else []
    return fired


# ── by name ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_by_name_is_to_the_bit_as_from_telemetry() -> None:
    by_name, whole = index(), index()
    for step, (loss, norm) in enumerate(calm(300), 1):
        loss = math.nan if step == 150 else loss
        assert by_name.update(step=step, loss=loss, grad_norm=norm) == whole.update(
            telemetry(step, loss, norm)
        )
    assert by_name.state_dict() == whole.state_dict()


def test_the_step_is_the_next_if_left_out() -> None:
    one, other = index(), index()
    for step, (loss, norm) in enumerate(calm(100), 1):
        assert one.update(loss=loss, grad_norm=norm) == other.update(
            step=step, loss=loss, grad_norm=norm
        )


@pytest.mark.parametrize(
    "number",
    [
        np.float32,
        np.float64,
        lambda x: np.array([x]),
        torch.tensor,
        lambda x: torch.tensor([x], dtype=torch.float64),
        lambda x: torch.tensor(x, requires_grad=True),
        Fraction,
    ],
)
def test_whatever_is_a_number(number: Any) -> None:
    made = index(min_history=4, window=8)
    for step in np.arange(1, 40):
        made.update(step=step, loss=number(3 + 0.25 * (step % 3)), grad_norm=number(1.0))
    made.update(telemetry(40, number(3.0), number(1.0), probe_loss=number(2.0)))
    assert strict(json.dumps(made.state_dict())) == made.state_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "telemetry or its loss, found neither"),
        ({"loss": "2.8"}, "loss must be a number"),
        ({"loss": torch.zeros(2)}, "loss must be a number"),
        ({"loss": 1j}, "loss must be a number"),
        ({"loss": 2.8, "grad_norm": [1.0]}, "grad_norm must be a number"),
        ({"loss": 2.8, "step": -1}, "step must be a whole number"),
        ({"loss": 2.8, "step": 1.5}, "step must be a whole number"),
    ],
)
def test_what_is_no_step_is_refused_and_leaves_no_trace(
    given: dict[str, Any], message: str
) -> None:
    made = index()
    before = json.dumps(made.state_dict())
    with pytest.raises(UserError, match=message):
        made.update(**given)
    assert json.dumps(made.state_dict()) == before


def test_both_or_a_bare_number_are_refused() -> None:
    with pytest.raises(UserError, match="found both"):
        index().update(telemetry(1, 3.0), loss=3.0)
    with pytest.raises(UserError, match="by name"):
        index().update(2.8)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, -5, 1.5, "many"])
def test_a_length_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises(UserError, match="steps must be a whole number"):
        UncertaintyIndex(steps=steps)


# ── axes that can't speak ───────────────────────────────────────────────────────────────────────────────────────────


def test_silent_axes_give_up_their_weight() -> None:
    made, axes = index(), {"volatility": 3.0, "entropy": 0.0, "disagreement": 3.0}
    whole = made._read(1000, **axes).index
    alone = made._read(1001, **{**axes, "entropy": None}).index  # type: ignore[arg-type]
    assert whole == pytest.approx(0.7 * 3)
    assert alone == pytest.approx(0.7 * 3 * math.sqrt(0.38 / 0.29))
    assert made._read(1002, volatility=None, entropy=None, disagreement=None).index == 0


def test_noise_is_as_wide_with_axes_silent() -> None:
    draws = np.random.Generator(np.random.Philox(key=1)).normal(size=(4000, 3)).tolist()
    made = index()

    def width(heard: tuple[bool, bool, bool]) -> float:
        rows = [[z if speaks else None for z, speaks in zip(row, heard)] for row in draws]
        return float(
            np.std(
                [
                    made._weighted(dict(zip(("volatility", "entropy", "disagreement"), row)))
                    for row in rows
                ]
            )
        )  # type: ignore[arg-type]

    whole = width((True, True, True))
    for heard in (
        (True, False, True),
        (True, False, False),
        (False, True, False),
        (False, True, True),
    ):
        assert width(heard) == pytest.approx(whole, rel=0.04)


@pytest.mark.parametrize("only_loss", [True, False])
@pytest.mark.parametrize("steps", [200, 1000, 16_000, None])
@pytest.mark.parametrize("start", [80, 190, 700])
@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_a_loss_that_triples_within_eight_steps_fires(
    only_loss: bool, steps: int | None, start: int, noise: float
) -> None:
    draws = noise * np.random.Generator(np.random.Philox(key=start)).normal(size=start + 8)
    losses = (2.8 + draws + np.r_[np.zeros(start), np.arange(1, 9) * 0.75]).tolist()
    found = fed(
        index(steps),
        [(loss, 1.0 + 0.1 * (step % 3)) for step, loss in enumerate(losses)],
        only_loss,
    )
    assert found
    assert min(found) > start


@pytest.mark.parametrize("axis", ["volatility", "entropy", "disagreement"])
@pytest.mark.parametrize("step", [1, 1000])
def test_an_axis_at_its_most_fires_alone_in_the_end(axis: str, step: int) -> None:
    made, axes = index(), {"volatility": 0.0, "entropy": 0.0, "disagreement": 0.0, axis: 6.0}
    readings = [made._read(step + n, **axes) for n in range(3)]
    assert [reading.fired for reading in readings] == [False, False, True]
    assert readings[-1].index >= readings[-1].threshold


def test_an_axis_at_its_most_must_stay_there() -> None:
    made = index()
    for step in range(1000, 1030):
        assert not made._read(
            step, volatility=0.0, entropy=5.9 if step % 3 == 2 else 6.0, disagreement=0.0
        ).fired


@pytest.mark.parametrize(
    ("noise", "only_loss", "most"), [("normal", True, 3), ("normal", False, 3), ("heavy", False, 6)]
)
def test_without_a_probe_a_calm_run_seldom_fires(noise: str, only_loss: bool, most: int) -> None:
    assert len(fed(index(), calm(20_000, 1, noise), only_loss)) <= most


def test_a_probe_that_is_gone_falls_silent() -> None:
    made, rng = index(), np.random.Generator(np.random.Philox(key=3))
    for step in range(1, 400):
        looks = dict(
            zip(("probe_loss", "attention_entropy"), (0.7 + 0.01 * rng.normal(size=2)).tolist())
        )
        made.update(telemetry(step, 3 + 0.1 * rng.normal(), **(looks if step % 8 == 1 else {})))
    made.update(telemetry(401, 3.0, probe_loss=9.0, attention_entropy=0.1))
    after = [made.update(telemetry(step, 3 + 0.1 * rng.normal())) for step in range(402, 480)]
    assert after[6].volatility == after[6].entropy == 6
    assert max(max(reading.volatility, reading.entropy) for reading in after[30:]) < 6
    assert sum(reading.fired for reading in after) == 1


# ── leniency ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("steps", "lenient"), [(200, 40), (1000, 200), (1500, 300), (16_000, 300), (None, 300)]
)
def test_leniency_is_a_share_of_the_run_and_bounded(steps: int | None, lenient: int) -> None:
    made = index(steps)
    found = [
        made._read(step, volatility=0.0, entropy=0.0, disagreement=0.0).threshold
        for step in (lenient // 2, lenient)
    ]
    assert found == pytest.approx([3.75, 2.5])


def test_numbers_without_a_share_are_still_numbers() -> None:
    before = {
        name: value
        for name, value in NUMBERS.items()
        if name not in ("lenient_share", "shift_drift", "shift_limit")
    }
    assert UncertaintyConfig(**before) == UncertaintyConfig(**NUMBERS)
    assert (
        RunConfig.load(
            "tiny", {"monitor.uncertainty.lenient_steps": 50}
        ).monitor.uncertainty.lenient_steps
        == 50
    )


def test_a_run_tells_its_index_how_long_it_is() -> None:
    small = {"steps": 40, "batch_size": 2, "model.context": 16, "model.width": 16, "device": "cpu"}
    run = TrainingRun.from_config("tiny", small)
    threshold = run.advance(8)[-1].reading.threshold
    assert threshold == 2.5
    assert run.fork().advance(1)[-1].reading.threshold == 2.5


# ── rewinds ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def spike(made: UncertaintyIndex) -> list[int]:
    return fed(made, [(9.0, 40.0)] * 6)


def test_what_was_said_of_a_future_that_is_gone_is_forgotten() -> None:
    made = index()
    assert fed(made, calm(600)) == []
    assert spike(made)
    assert spike(made) == []  # silent
    made.update(step=500, loss=2.9, grad_norm=1.3)
    assert fed(made, calm(600)[500:530]) == []
    assert spike(made)


def test_silence_from_before_the_place_of_the_rewind_lasts() -> None:
    made = index()
    fed(made, calm(600))
    (alarm,) = spike(made)
    made.update(step=alarm + 3, loss=2.7, grad_norm=1.2)
    assert spike(made) == []


def test_a_loop_that_counts_from_zero() -> None:
    assert index().update(step=0, loss=math.nan).fired


# ── an older state ──────────────────────────────────────────────────────────────────────────────────────────────────

OLDER = json.loads(  # as it was kept before an index had a memory of small rises
    '{"tracks":{"loss":{"residuals":[-0.07,-0.063,-0.14,-0.125,-0.03,0.075,0.0943,0.0225],"scalars"'
    ':[10,3.01,-0.1,0.0511,0.0482]},"grad_norm":{"residuals":[0.0554,0.0203,-0.012,-0.14,0.173,-0.0'
    '947,0.112,-0.0406],"scalars":[11,-0.0194,0.0498,0.306,0.306]},"strain":{"residuals":[0.709,1.4'
    '4,1.85,1.27,0.232,1.88,0.514],"scalars":[7,1.92,1.36,0.426,0.426]},"disagreement":{"residuals"'
    ':[-2.46,-0.273,-2.84],"scalars":[3,-4.77,0.0,0.0,0.0]},"probe_loss":{"residuals":[0.0,0.0],"sc'
    'alars":[2,2.5,0.0,0.0,0.0]},"attention_entropy":{"residuals":[0.0,0.0],"scalars":[2,0.5,0.0,0.'
    '0,0.0]},"activation_entropy":{"residuals":[],"scalars":[0,null,0.0,0.0,0.0]},"shortcut_ratio":'
    '{"residuals":[],"scalars":[0,null,0.0,0.0,0.0]}},"forecasters":{"weights":[[-0.0752,0.667,-0.7'
    "05,0.00351],[-0.0681,0.626,-0.548,-0.0314],[-0.0647,0.602,-0.47,-0.0429],[-0.0637,0.595,-0.446"
    ',-0.0455],[-0.0633,0.591,-0.435,-0.0466]],"covariance":[[[0.508,0.749,4.64,2.53],[0.749,37.9,-'
    "34.3,2.49],[4.64,-34.3,138.0,-40.5],[2.53,2.49,-40.5,261.0]],[[0.347,0.718,2.82,1.39],[0.718,2"
    "8.5,-23.1,0.661],[2.82,-23.1,89.2,-22.2],[1.39,0.661,-22.2,155.0]],[[0.278,0.667,2.1,0.976],[0"
    ".667,23.9,-18.2,0.0495],[2.1,-18.2,68.9,-15.5],[0.976,0.0495,-15.5,114.0]],[[0.259,0.646,1.9,0"
    ".87],[0.646,22.5,-16.9,-0.0946],[1.9,-16.9,63.3,-13.8],[0.87,-0.0946,-13.8,104.0]],[[0.249,0.6"
    '36,1.81,0.821],[0.636,21.8,-16.2,-0.157],[1.81,-16.2,60.6,-13.0],[0.821,-0.157,-13.0,98.7]]],"'
    'features":[1.0,-0.13,-0.0878,-0.0325],"averages":[-0.0878,-0.0325],"scalars":[3.08,0.0626,11]}'
    ',"probed":{"probe_loss":0.0,"attention_entropy":0.0},"counts":[2.37,0,61]}'
)


def test_an_older_state_goes_on() -> None:
    made = index(window=8, min_history=4)
    fed(made, calm(30))
    made.load_state_dict(OLDER)
    kept = made.state_dict()
    assert {name: kept[name] for name in OLDER} == OLDER
    assert kept["lately"] == index().state_dict()["lately"]
    assert not made.update(telemetry(13, 3.0)).fired
    assert not made.update(telemetry(14, math.nan)).fired  # silent until step 61, as it was
    assert made.update(telemetry(62, math.nan)).fired


def test_states_are_strict_json_and_go_on_to_the_bit() -> None:
    values = calm(700)
    values[300:306] = [(9.0, 40.0)] * 6
    values[500] = (math.nan, math.nan)
    whole, first, second = index(), index(), index()
    for loss, norm in values[:303]:
        first.update(loss=loss, grad_norm=norm)
    second.load_state_dict(strict(json.dumps(first.state_dict())))
    expected = [whole.update(loss=loss, grad_norm=norm) for loss, norm in values]
    assert [second.update(loss=loss, grad_norm=norm) for loss, norm in values[303:]] == expected[
        303:
    ]
    assert any(reading.fired for reading in expected)
