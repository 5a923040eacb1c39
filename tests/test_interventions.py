"""The action codec: a bijection over the whole space, bounded by masks that never lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import PARTS, ActionCodec, within
from trainenv.types import CLIP_NAMES, Intervention, UserError

SIZES = (4, 3, 5, 2, 2, 2)
EVERYTHING = InterventionConfig(allow_spam=True, allow_data_reorder=True, allow_skip_batch=True)
WIDER = InterventionConfig(lr_scales=(1.0, 0.3, 3.0), weight_decay_scales=(1.0, 0.1, 7.0, 2.0))


@dataclass(frozen=True)
class Fake:
    """Interventions in force, without a run."""

    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    clip: str = "zclip"
    flagged_ahead: tuple[int, ...] = field(default=())

    def after(self, intervention: Intervention) -> Fake:
        return replace(
            self,
            lr_scale=self.lr_scale * intervention.lr_scale,
            weight_decay_scale=self.weight_decay_scale * intervention.weight_decay_scale,
            clip=intervention.clip or self.clip,
        )


def space(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    return list(product(*(range(size) for size in sizes)))


# ── codec ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sizes() -> None:
    assert ActionCodec().sizes == SIZES
    assert ActionCodec(WIDER).sizes == (3, 4, 5, 2, 2, 2)
    assert PARTS[len(SIZES) :] == ("emphasis",)


@pytest.mark.parametrize("config", [InterventionConfig(), WIDER])
def test_a_bijection_over_the_whole_space(config: InterventionConfig) -> None:
    codec = ActionCodec(config)
    actions = space(codec.sizes)
    decoded = [codec.decode(np.array(action)) for action in actions]
    assert len(set(decoded)) == len(actions) == math.prod(codec.sizes)
    for action, intervention in zip(actions, decoded):
        vector = codec.encode(intervention)
        assert vector.dtype == np.int64
        assert tuple(vector) == action


def test_zeros_does_nothing_and_nothing_else_does() -> None:
    codec = ActionCodec()
    assert codec.decode([0] * 6) == Intervention()
    assert codec.encode(Intervention()).tolist() == [0] * 6
    assert [action for action in space(SIZES) if codec.decode(action).does_nothing] == [(0,) * 6]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        *(
            ([n, 0, 0, 0, 0, 0], Intervention(lr_scale=scale))
            for n, scale in enumerate((1.0, 0.8, 0.9, 1.1))
        ),
        *(
            ([0, n, 0, 0, 0, 0], Intervention(weight_decay_scale=scale))
            for n, scale in enumerate((1.0, 0.5, 2.0))
        ),
        *(
            ([0, 0, n, 0, 0, 0], Intervention(clip=clip))
            for n, clip in enumerate((None, "none", "zclip", "arc", "spam"))
        ),  # type: ignore[arg-type]
        ([0, 0, 0, 1, 0, 0], Intervention(momentum_reset=True)),
        ([0, 0, 0, 0, 1, 0], Intervention(data_reorder=True)),
        ([0, 0, 0, 0, 0, 1], Intervention(skip_batch=True)),
        (
            [1, 2, 3, 1, 1, 1],
            Intervention(
                lr_scale=0.8,
                weight_decay_scale=2.0,
                clip="arc",
                momentum_reset=True,
                data_reorder=True,
                skip_batch=True,
            ),
        ),
    ],
)
def test_the_values_in_their_order(action: list[int], expected: Intervention) -> None:
    assert ActionCodec().decode(action) == expected


@pytest.mark.parametrize(
    "kind",
    [list, tuple, np.array, lambda a: np.array(a, np.int8), lambda a: np.array(a, np.float32)],
)
def test_any_vector_of_whole_numbers(kind: Any) -> None:
    assert ActionCodec().decode(kind([1, 0, 2, 0, 1, 0])) == Intervention(
        lr_scale=0.8, clip="zclip", data_reorder=True
    )


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("below", [True, False])
def test_out_of_range(place: int, below: bool) -> None:
    action = [0] * 6
    action[place] = -1 if below else SIZES[place]
    with pytest.raises(
        UserError,
        match=f"the action's {PARTS[place]} must be from 0 to {SIZES[place] - 1}, found {action[place]} in",
    ):
        ActionCodec().decode(action)


@pytest.mark.parametrize(
    "action",
    [
        [],
        [0] * 5,
        [0] * 7,
        [[0] * 6],
        0,
        None,
        "000000",
        [0.5, 0, 0, 0, 0, 0],
        [math.nan, 0, 0, 0, 0, 0],
        ["a"] * 6,
    ],
)
def test_not_an_action(action: Any) -> None:
    with pytest.raises(
        UserError, match=r"an action is 6 whole numbers \(lr_scale, weight_decay_scale, clip"
    ):
        ActionCodec().decode(action)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite(value: float) -> None:
    with pytest.raises(UserError):
        ActionCodec().decode([value, 0, 0, 0, 0, 0])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (
            Intervention(lr_scale=0.5),
            "lr_scale must be one of 1, 0.8, 0.9, 1.1 in this action space, found 0.5",
        ),
        (
            Intervention(weight_decay_scale=3.0),
            "weight_decay_scale must be one of 1, 0.5, 2 in this action space, found 3",
        ),
    ],
)
def test_values_that_the_space_lacks(intervention: Intervention, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ActionCodec().encode(intervention)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.9", None])
def test_impossible_scales(value: Any) -> None:
    with pytest.raises(
        UserError, match=r"lr_scale must be a finite number above 0.*1\.0 changes nothing"
    ):
        Intervention(lr_scale=value)
    with pytest.raises(UserError, match="weight_decay_scale must be a finite number above 0"):
        Intervention(weight_decay_scale=value)


def test_further_clip_policies_are_actions_where_the_configuration_has_them() -> None:
    usual = ActionCodec()
    assert usual.sizes == (4, 3, 5, 2, 2, 2)
    with pytest.raises(UserError, match=r"found 'adagc'; add it to interventions\.clips"):
        usual.encode(Intervention(clip="adagc"))
    wider = ActionCodec(InterventionConfig(clips=(*CLIP_NAMES, "skip_step", "adagc")))
    assert wider.sizes == (4, 3, 7, 2, 2, 2)
    for name in (None, *CLIP_NAMES, "skip_step", "adagc"):
        intervention = Intervention(clip=name)
        assert wider.decode(wider.encode(intervention)) == intervention
    assert wider.masks(Fake(clip="adagc"))[2].tolist() == [True] * 4 + [False, True, False]
    with pytest.raises(ValueError, match="each policy once"):
        InterventionConfig(clips=("zclip", "zclip"))


def test_unknown_clip_policy() -> None:
    with pytest.raises(
        UserError,
        match=r"clip must be None \(keep\) or one of none, zclip, .*, adagc, .*, found 'zclop'",
    ):
        Intervention(clip="zclop")  # type: ignore[arg-type]


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

runs = st.builds(
    Fake,
    lr_scale=st.floats(1e-3, 100),
    weight_decay_scale=st.floats(1e-2, 100),
    clip=st.sampled_from(CLIP_NAMES),
    flagged_ahead=st.sampled_from([(), (3,), (1, 2)]),
)
configs = st.builds(
    InterventionConfig,
    lr_scales=st.sampled_from([(1.0, 0.8, 0.9, 1.1), (1.0, 0.1, 3.0)]),
    lr_bounds=st.sampled_from([(0.01, 10.0), (0.5, 1.0), (1.0, 1.0)]),
    allow_spam=st.booleans(),
    allow_data_reorder=st.booleans(),
    allow_skip_batch=st.booleans(),
)


@given(run=runs, config=configs)
def test_masks_have_the_space_s_shape_and_doing_nothing_is_always_legal(
    run: Fake, config: InterventionConfig
) -> None:
    codec = ActionCodec(config)
    masks = codec.masks(run)
    assert tuple(len(mask) for mask in masks) == codec.sizes
    assert all(mask.dtype == np.bool_ and mask[0] for mask in masks)
    assert codec.legal([0] * 6, run) == (Intervention(), ())


@given(data=st.data(), config=configs)
def test_legal_actions_never_lead_out_of_bounds(
    data: st.DataObject, config: InterventionConfig
) -> None:
    codec, run = ActionCodec(config), Fake()
    for _ in range(data.draw(st.integers(1, 40))):
        wanted = data.draw(st.tuples(*(st.integers(0, size - 1) for size in codec.sizes)))
        intervention, _ = codec.legal(wanted, run)
        run = run.after(intervention)
        assert within(run.lr_scale, config.lr_bounds)
        assert within(run.weight_decay_scale, config.weight_decay_bounds)


@given(config=configs, run=runs)
def test_all_legal_is_exactly_what_the_masks_allow(config: InterventionConfig, run: Fake) -> None:
    codec = ActionCodec(config)
    legal = list(codec.all_legal(run))
    assert legal[0] == Intervention()
    assert len(set(legal)) == len(legal)
    masks = codec.masks(run)
    allowed = [
        action
        for action in space(codec.sizes)
        if all(mask[value] for mask, value in zip(masks, action))
    ]
    assert set(legal) == {codec.decode(action) for action in allowed}


@given(run=runs, config=configs, data=st.data())
def test_legal_leaves_masked_parts_out_and_names_them(
    run: Fake, config: InterventionConfig, data: st.DataObject
) -> None:
    codec = ActionCodec(config)
    action = data.draw(st.tuples(*(st.integers(0, size - 1) for size in codec.sizes)))
    intervention, out = codec.legal(action, run)
    masks = codec.masks(run)
    expected = tuple(name for name, mask, value in zip(PARTS, masks, action) if not mask[value])
    assert out == expected
    assert codec.encode(intervention).tolist() == [
        0 if name in out else value for name, value in zip(PARTS, action)
    ]
    assert intervention in set(codec.all_legal(run))
    assert codec.legal(codec.encode(intervention), run) == (intervention, ())


def test_masks_at_the_bounds() -> None:
    codec = ActionCodec()
    lr, decay, *_ = codec.masks(Fake(lr_scale=10.0, weight_decay_scale=8.0))
    assert lr.tolist() == [True, True, True, False]
    assert decay.tolist() == [True, True, False]
    lr, decay, *_ = codec.masks(Fake(lr_scale=0.01, weight_decay_scale=0.125))
    assert lr.tolist() == [True, False, False, True]
    assert decay.tolist() == [True, False, True]


def test_bounds_can_be_reached_in_spite_of_rounding() -> None:
    codec = ActionCodec(InterventionConfig(lr_scales=(1.0, 0.9, 1.1), lr_bounds=(0.9**7, 1.1**7)))
    for place, scale in ((1, 0.9), (2, 1.1)):
        run = Fake()
        for _ in range(7):
            assert codec.masks(run)[0][place]
            run = replace(run, lr_scale=run.lr_scale * scale)
        assert not codec.masks(run)[0][place]


@pytest.mark.parametrize("clip", CLIP_NAMES)
def test_the_policy_in_force_is_redundant(clip: str) -> None:
    mask = ActionCodec(EVERYTHING).masks(Fake(clip=clip))[2]
    assert mask.tolist() == [True, *(name != clip for name in CLIP_NAMES)]


def test_optional_parts_are_masked_unless_allowed() -> None:
    run = Fake(clip="none", flagged_ahead=(3,))
    _, _, clip, reset, reorder, skip = ActionCodec().masks(run)
    assert clip.tolist() == [True, False, True, True, False]
    assert (reset.tolist(), reorder.tolist(), skip.tolist()) == (
        [True, True],
        [True, False],
        [True, False],
    )
    _, _, clip, _, reorder, skip = ActionCodec(EVERYTHING).masks(run)
    assert clip.tolist() == [True, False, True, True, True]
    assert (reorder.tolist(), skip.tolist()) == ([True, True], [True, True])


def test_nothing_flagged_nothing_to_skip() -> None:
    assert ActionCodec(EVERYTHING).masks(Fake())[5].tolist() == [True, False]


def test_legal_refuses_what_is_no_action() -> None:
    with pytest.raises(UserError, match="must be from 0 to 3"):
        ActionCodec().legal([4, 0, 0, 0, 0, 0], Fake())
