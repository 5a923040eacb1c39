"""Moments in 8 bits: within bounds that follow from the codes, no second moment lost, nothing rounded that need not be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.checkpoint_files import MARK, adam, bits, content, holding, snapshot
from trainenv.checkpoints import file, quantiser
from trainenv.run import TrainingRun
from trainenv.types import UserError

Row = npt.NDArray[np.float32]
TINY = 2.0**-126  # the least normal float32: what a second moment above zero may gain
LARGEST = float(np.finfo(np.float32).max)
LENGTHS = [1, 2, 255, 256, 257, 511, 513, 1000]


def row(values: Any) -> Row:
    return np.asarray(values, np.float32)


def through(kind: quantiser.Kind, moment: Row, second: Row | None = None) -> Row:
    """Rounded, and back."""
    codes, scales = quantiser.quantise("m", kind, moment, second)
    assert (codes.dtype, codes.shape, scales.dtype) == (np.uint8, moment.shape, np.float32)
    assert len(scales) == quantiser.scale_count(len(moment))
    assert quantiser.are_scales(scales)
    out = np.full_like(moment, 9)
    root = quantiser.quantise("v", "root", second, None) if second is not None else None
    quantiser.dequantise(kind, codes, scales, root, out)
    return out


def scale_of(x: Row) -> npt.NDArray[np.float64]:
    """The largest magnitude of each element's block, element by element."""
    blocks = [
        np.abs(x[start : start + 256]).max().repeat(len(x[start : start + 256]))
        for start in range(0, len(x), 256)
    ]
    return np.concatenate(blocks).astype(np.float64)


wide = st.floats(-44, 38).map(
    lambda power: 10.0**power
)  # any order of magnitude that float32 has, denormals too
seconds = st.lists(st.just(0.0) | wide, min_size=1, max_size=600).map(row)
firsts = st.lists(st.just(0.0) | wide | wide.map(lambda x: -x), min_size=1, max_size=600).map(row)


# ── how far off ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(second=seconds)
@example(second=row([LARGEST, 1e-45, 0.0]))
@example(second=row([1.2e-36, 1e-45, 0.0]))  # of which the square of the rounded root underflows
@settings(deadline=None)
def test_a_second_moment_is_off_by_half_a_code_and_above_zero_where_it_was(second: Row) -> None:
    back = through("root", second)
    assert np.array_equal(back > 0, second > 0)
    assert np.isfinite(back).all()
    scale = scale_of(np.sqrt(second))
    root, found = (
        np.sqrt(second.astype(np.float64)),
        np.sqrt(np.maximum(back.astype(np.float64) - TINY, 0)),
    )
    code = 255 * np.sqrt(root / np.where(scale > 0, scale, 1))
    # (c ± ½)² − c² ≤ c + ¼; what would be coded as zero is coded as one instead, which is off by less than 1.
    bound = scale * np.maximum(code + 0.25, 1) / 255**2
    assert (
        np.abs(found - root) <= bound * (1 + 1e-4) + 2.0**-62
    ).all()  # √TINY / 2: where the square underflows


@given(first=firsts)
@example(first=row([LARGEST, -LARGEST, 1e-45]))
@settings(deadline=None)
def test_a_signed_moment_is_off_by_half_a_code(first: Row) -> None:
    back = through("signed", first)
    assert not back[first == 0].any()
    assert (np.sign(back) * np.sign(first) >= 0).all()
    scale = scale_of(first)
    code = 127 * np.sqrt(np.abs(first.astype(np.float64)) / np.where(scale > 0, scale, 1))
    bound = scale * (code + 0.25) / 127**2
    assert (
        np.abs(back.astype(np.float64) - first) <= bound * (1 + 1e-4) + 127**2 * 2.0**-149
    ).all()


@given(second=seconds, seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_first_moment_is_off_by_half_a_code_of_its_direction(second: Row, seed: int) -> None:
    ratio = row(np.random.default_rng(seed).normal(size=len(second)).clip(-5, 5))
    first = row(ratio * np.sqrt(second))
    back = through("direction", first, second)
    assert not back[first == 0].any()
    root = np.sqrt(second)
    direction = first / np.where(root > 0, root, np.float32(1))
    codes, scales = quantiser.quantise("v", "root", second, None)
    share = (codes.astype(np.float64) / 255) ** 2
    decoded = (
        share * scales.astype(np.float64).repeat(256)[: len(second)]
    )  # the √v that it is decoded with
    error = np.abs(back.astype(np.float64) - decoded * direction.astype(np.float64))
    assert (error <= decoded * scale_of(direction) / 254 * (1 + 1e-4) + 2.0**-148).all()


def test_larger_second_moments_decode_no_smaller() -> None:
    second = np.sort(row(np.exp(np.random.default_rng(0).normal(-20, 2, 256))))
    back = through("root", second)
    assert (np.diff(back) >= 0).all()
    assert back[-1] == pytest.approx(second[-1], rel=1e-6)
    assert len(np.unique(back)) > 60


def test_what_is_largest_in_a_block_stays() -> None:
    first = row([3.0, -3.0, 0.1, 0.0])
    assert through("signed", first)[:2] == pytest.approx([3, -3], rel=1e-6)
    second = row([4.0, 9.0, 1.0, 0.0])
    assert through("direction", row([6.0, -9.0, 0.5, 0.0]), second)[[0, 1, 3]] == pytest.approx(
        [6, -9, 0], rel=0.01
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", quantiser.KINDS)
def test_zero_decodes_to_zero_at_any_length(kind: quantiser.Kind, length: int) -> None:
    zeros, second = np.zeros(length, np.float32), np.ones(length, np.float32)
    assert not through(kind, zeros, second if kind == "direction" else None).any()
    assert not through(kind, -zeros, zeros if kind == "direction" else None).any()


@pytest.mark.parametrize("length", LENGTHS)
def test_blocks_know_nothing_of_one_another(length: int) -> None:
    first = row(np.random.default_rng(1).normal(size=length))
    alone = [through("signed", first[start : start + 256]) for start in range(0, length, 256)]
    assert np.array_equal(through("signed", first), np.concatenate(alone))


def test_stretches_know_nothing_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    second = row(np.exp(np.random.default_rng(2).normal(-9, 4, 5000)))
    first = row(np.sqrt(second))
    expected = quantiser.quantise("m", "direction", first, second)
    monkeypatch.setattr(quantiser, "STRETCH", 1024)
    for one, two in zip(expected, quantiser.quantise("m", "direction", first, second)):
        assert np.array_equal(one, two)


# ── what can't be rounded ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -1e-45])
@pytest.mark.parametrize("which", ["exp_avg", "exp_avg_sq"])
def test_what_is_not_finite_is_refused_by_name(which: str, bad: float, tmp_path: Path) -> None:
    moments = adam()
    name = f"optimizer/state/0/{which}"
    moments[name].view(-1)[4700] = bad
    fine = which == "exp_avg" and math.isfinite(bad)
    if fine:
        file.write(holding(moments), tmp_path / "cp", tier="8bit")
        return
    with pytest.raises(
        UserError, match=f"{name} holds values that are not finite.*save it with moments='exact'"
    ):
        file.write(holding(moments), tmp_path / "cp", tier="8bit")
    assert list(tmp_path.iterdir()) == []
    file.write(holding(moments), tmp_path / "cp", tier="exact")
    assert content(file.read(tmp_path / "cp")) == content(holding(moments))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_scales_that_no_rounding_gives_are_told(bad: float) -> None:
    assert quantiser.are_scales(row([0.0, 1.0, LARGEST]))
    assert not quantiser.are_scales(row([0.0, bad]))


# ── which are rounded, and how ──────────────────────────────────────────────────────────────────────────────────────


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    entries = optimizer.state_dict()["state"]
    return {
        f"optimizer/state/{place}/{name}": value
        for place, entry in entries.items()
        for name, value in entry.items()
    }


def stepped(make: Any, shape: tuple[int, ...] = (64, 64)) -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(8))]
    optimizer = make(weights)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return {name: value for name, value in state_of(optimizer).items() if isinstance(value, Tensor)}


OPTIMIZERS: dict[str, tuple[Any, dict[str, str]]] = {
    "Adam": (torch.optim.Adam, {"exp_avg": "direction", "exp_avg_sq": "root"}),
    "AMSGrad": (
        lambda weights: torch.optim.AdamW(weights, amsgrad=True),
        {"exp_avg": "direction", "exp_avg_sq": "root", "max_exp_avg_sq": "root"},
    ),
    "momentum": (
        lambda weights: torch.optim.SGD(weights, momentum=0.9),
        {"momentum_buffer": "signed"},
    ),
    "no momentum": (torch.optim.SGD, {}),
    "Adamax": (torch.optim.Adamax, {"exp_avg": "signed"}),
    "Adagrad": (torch.optim.Adagrad, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_rounded_of_an_optimizer(name: str, tmp_path: Path) -> None:
    make, expected = OPTIMIZERS[name]
    tensors = stepped(make)
    kinds = quantiser.kinds(tensors)
    assert {
        name.removeprefix("optimizer/state/0/"): kind for name, kind in kinds.items()
    } == expected
    file.write(holding(tensors), tmp_path / "cp", tier="8bit")
    back = file.read(tmp_path / "cp").tensors
    for name, tensor in tensors.items():
        if name not in kinds:
            assert bits(back[name]) == bits(tensor)
        else:
            assert bits(back[name]) != bits(tensor)
            assert (back[name] - tensor).norm() < 0.02 * tensor.norm()


def test_a_first_moment_without_a_direction_is_rounded_by_itself() -> None:
    moments = adam()
    second = moments["optimizer/state/0/exp_avg_sq"]
    second.view(-1)[5] = 0  # underflowed, and the first did not
    assert quantiser.kinds(moments)["optimizer/state/0/exp_avg"] == "signed"
    moments["optimizer/state/0/exp_avg"].view(-1)[5] = 0
    assert quantiser.kinds(moments)["optimizer/state/0/exp_avg"] == "direction"
    for other in (second.double(), second.flatten(), second[1:]):
        assert (
            quantiser.kinds({**moments, "optimizer/state/0/exp_avg_sq": other})[
                "optimizer/state/0/exp_avg"
            ]
            == "signed"
        )


def test_what_is_no_moment_is_not_rounded() -> None:
    large = torch.ones(8192)
    area = "optimizer/state/0"
    others = {
        "model/exp_avg": large,
        "optimizer/exp_avg": large,
        f"{area}/step": large,
        f"{area}/exp_avg_of": large,
    }
    assert quantiser.kinds(others) == {}
    assert (
        quantiser.kinds(
            {f"{area}/exp_avg": large.half(), "optimizer/state/1/exp_avg_sq": large.double()}
        )
        == {}
    )


@pytest.mark.parametrize("count", [quantiser.SMALLEST - 1, quantiser.SMALLEST])
def test_small_tensors_stay_as_they_are(count: int, tmp_path: Path) -> None:
    moments = adam((count,))
    file.write(holding(moments), tmp_path / "cp", tier="8bit")
    back = file.read(tmp_path / "cp").tensors
    kept = [name for name in moments if bits(back[name]) == bits(moments[name])]
    assert len(kept) == (3 if count < quantiser.SMALLEST else 1)


# ── through a file ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(4097,), (64, 65), (16, 16, 17), (1024 * 256 + 3,)])
def test_a_file_gives_what_the_codes_say(shape: tuple[int, ...], tmp_path: Path) -> None:
    moments = adam(shape)
    moments["optimizer/state/0/exp_avg"].view(-1)[256:512] = 0  # a whole block
    moments["optimizer/state/0/exp_avg_sq"].view(-1)[256:512] = 0
    header = file.write(holding(moments), tmp_path / "cp", tier="8bit")
    assert header.rounded == {
        "optimizer/state/0/exp_avg": "direction",
        "optimizer/state/0/exp_avg_sq": "root",
    }
    back = file.read(tmp_path / "cp")
    assert content(back) == content(file.read(tmp_path / "cp"))
    assert back.tier == "8bit"
    first, second = (
        moments[f"optimizer/state/0/{name}"].flatten().numpy() for name in ("exp_avg", "exp_avg_sq")
    )
    assert back.tensors["optimizer/state/0/exp_avg"].shape == shape
    assert np.array_equal(
        back.tensors["optimizer/state/0/exp_avg"].flatten().numpy(),
        through("direction", first, second),
    )
    assert np.array_equal(
        back.tensors["optimizer/state/0/exp_avg_sq"].flatten().numpy(), through("root", second)
    )


def test_rounding_again_hardly_changes_a_thing(tmp_path: Path) -> None:
    file.write(holding(adam()), tmp_path / "one", tier="8bit")
    once = file.read(tmp_path / "one")
    file.write(once, tmp_path / "two", tier="8bit")
    twice = file.read(tmp_path / "two")
    for name, tensor in once.tensors.items():
        assert (twice.tensors[name] - tensor).float().norm() <= 1e-2 * tensor.float().norm()


def test_tied_moments_stay_one(tmp_path: Path) -> None:
    moments = adam()
    name = "optimizer/state/0/exp_avg"
    file.write(
        snapshot([*({MARK: n} for n in moments), {"again": {MARK: name}}], moments),
        tmp_path / "cp",
        tier="8bit",
    )
    back = file.read(tmp_path / "cp")
    assert back.state["objective"][-1] == {"again": {MARK: name}}
    assert len(back.tensors) == len(holding(moments).tensors)


def test_a_run_goes_on_nearly_as_it_would_have(tmp_path: Path) -> None:
    small = {
        "steps": 60,
        "batch_size": 4,
        "model": {"width": 32, "layers": 1, "heads": 2, "context": 32},
    }
    run = TrainingRun.from_config(
        "tiny", {**small, "schedule.warmup": 5, "validation": {"every": 0, "sequences": 4}}
    )
    run.advance(12)
    header = file.write(run.snapshot(), tmp_path / "cp", tier="8bit")
    assert {"root", "direction"} == set(header.rounded.values())
    other = run.fork()
    other.restore(file.read(tmp_path / "cp"))
    with pytest.raises(UserError, match="moments of this snapshot were rounded"):
        other.restore(file.read(tmp_path / "cp"), exact=True)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.advance(1)
    other.advance(1)
    for was, exact, near in zip(before, run.model.parameters(), other.model.parameters()):
        update, rounded = exact.detach() - was, near.detach() - was
        if was.numel() < quantiser.SMALLEST:
            assert torch.equal(update, rounded)
        else:
            assert 0 < (update - rounded).norm() < 0.01 * update.norm()


def test_updates_are_nearer_than_those_of_bitsandbytes() -> None:
    """The same blocks of 256 and the same bits; its dynamic codes, on m and on √v, which is kinder to it than on v."""
    functional = pytest.importorskip("bitsandbytes").functional
    moments = adam((1024, 256), seed=4)
    first, second = moments["optimizer/state/0/exp_avg"], moments["optimizer/state/0/exp_avg_sq"]

    def dynamic(x: Tensor, signed: bool) -> Tensor:
        codes, state = functional.quantize_blockwise(
            x, code=functional.create_dynamic_map(signed=signed), blocksize=256
        )
        back = functional.dequantize_blockwise(codes, state)
        assert isinstance(back, Tensor)
        return back

    def update(first: Tensor, root: Tensor) -> Tensor:
        return first / (root + 1e-8)

    ours_first = torch.from_numpy(
        through("direction", first.flatten().numpy(), second.flatten().numpy())
    )
    ours = update(ours_first, torch.from_numpy(through("root", second.flatten().numpy())).sqrt())
    theirs = update(dynamic(first, True), dynamic(second.sqrt(), False)).flatten()
    exact = update(first, second.sqrt()).flatten()
    error, their_error = ((found - exact).norm() / exact.norm() for found in (ours, theirs))
    assert error < 0.01
    assert error < 0.5 * their_error
