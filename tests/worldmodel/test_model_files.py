"""Files: the same model gives the same bytes and comes back as it was; anything else is refused in a sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from tests.support.made_models import calibration_examples, history, model
from trainenv import worldmodel
from trainenv.types import Intervention, UserError
from trainenv.worldmodel import serialization
from trainenv.worldmodel.examples import Examples
from trainenv.worldmodel.model import Model
from trainenv.worldmodel.serialization import CARD, WEIGHTS, load, load_rehearsal, save

TRIED = [
    Intervention(),
    Intervention(lr_scale=0.8),
    Intervention(momentum_reset=True, clip="zclip"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model(), tmp_path_factory.mktemp("model"), some_examples())


@pytest.fixture
def mine(saved: Path, tmp_path: Path) -> Path:
    for name in (CARD, WEIGHTS):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def some_examples() -> Examples:
    whole = calibration_examples()
    return whole.where(np.flatnonzero(whole.trunk % 3 == 1))


def rewrite(
    folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
) -> None:
    """Change what the files hold, and sign it anew, as somebody would who means it."""
    card, tensors = (
        json.loads((folder / CARD).read_bytes()),
        from_bytes((folder / WEIGHTS).read_bytes()),
    )
    change(card, tensors)
    content = to_bytes(tensors)
    card["digest"] = serialization._digest(content, card)
    (folder / WEIGHTS).write_bytes(content)
    (folder / CARD).write_bytes(serialization._text(card))


def test_there_and_back(saved: Path, tmp_path: Path) -> None:
    first = load(saved)
    again = save(first, tmp_path, load_rehearsal(saved))
    assert {path.name for path in again.iterdir()} == {CARD, WEIGHTS}
    for name in (CARD, WEIGHTS):
        assert (again / name).read_bytes() == (saved / name).read_bytes()
    second = load(again)
    assert first.forecast(history(), TRIED) == second.forecast(history(), TRIED)
    for (name, one), (other_name, other) in zip(
        first.networks.state_dict().items(), second.networks.state_dict().items()
    ):
        assert name == other_name
        assert torch.equal(one, other)
    assert first.calibrations is not None
    assert second.calibrations is not None
    assert first.calibrations.state == second.calibrations.state


def test_the_weights_are_those_saved_but_for_16_bits(saved: Path) -> None:
    read = load(saved).networks.state_dict()
    for name, value in model().networks.state_dict().items():
        assert read[name].dtype == value.dtype
        torch.testing.assert_close(read[name], value.half().float(), rtol=0, atol=0)
    card = load(saved).card
    assert card["made"] == "for tests"
    assert len(card["digest"]) == 64


def test_the_rehearsal_comes_back_without_what_it_does_not_need(saved: Path) -> None:
    before, after = some_examples(), load_rehearsal(saved)
    assert len(after) == len(before)
    assert [after.trunks[t] for t in after.trunk] == [before.trunks[t] for t in before.trunk]
    np.testing.assert_allclose(
        after.states[after.snapshot], before.states[before.snapshot], rtol=1e-3, atol=1e-3
    )
    for name in ("annealed", "final", "actions", "looks", "law"):
        np.testing.assert_allclose(
            getattr(after, name), getattr(before, name), rtol=1e-3, atol=1e-4
        )
    for name in ("kind", "diverged", "fired", "recovered"):
        assert (getattr(after, name) == getattr(before, name)).all()
    assert np.isnan(after.after).all()


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_any_byte_that_is_not_as_it_was_is_refused(mine: Path) -> None:
    rng = np.random.default_rng(0)
    for name in (CARD, WEIGHTS):
        content = (mine / name).read_bytes()
        places = {
            0,
            1,
            len(content) // 2,
            len(content) - 1,
            *rng.integers(len(content), size=40).tolist(),
        }
        for place in sorted(places):
            for flip in (1, 0x80):
                damaged = bytearray(content)
                damaged[place] ^= flip
                (mine / name).write_bytes(damaged)
                with pytest.raises(UserError):
                    load(mine)
        (mine / name).write_bytes(content)
    load(mine)


def test_a_digit_of_a_calibration_is_refused(mine: Path) -> None:
    text = (mine / CARD).read_text()
    place = text.index('"low": [') + len('"low": [')
    digit = next(k for k in range(place, len(text)) if text[k] in "12345678")
    (mine / CARD).write_text(text[:digit] + str(int(text[digit]) + 1) + text[digit + 1 :])
    with pytest.raises(UserError, match="expected the digest"):
        load(mine)


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_truncated_empty_swapped_missing_or_oversized(name: str, mine: Path) -> None:
    content = (mine / name).read_bytes()
    for wrong in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        content + b"\n",
        b"[" * 200_000,
        b"\x80\x04K\x01.",
    ):
        (mine / name).write_bytes(wrong)
        with pytest.raises(UserError, match=r"expected .*; (copy both files anew|build)"):
            load(mine)
    other = CARD if name == WEIGHTS else WEIGHTS
    (mine / name).write_bytes((mine / other).read_bytes())
    with pytest.raises(UserError, match="expected"):
        load(mine)
    with open(mine / name, "wb") as file:
        file.truncate(serialization._LARGEST + 1)
    with pytest.raises(UserError, match="of at most 16777216 bytes, found 16777217"):
        load(mine)
    (mine / name).unlink()
    with pytest.raises(UserError, match=f"no readable {name}"):
        load(mine)
    with pytest.raises(UserError, match="no readable"):
        load_rehearsal(mine)


def set_(*path: str, value: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    """A change of one value of the card."""

    def change(card: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        inner = card
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value

    return change


def poison(value: float) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(card: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["networks/search.first.weight"][1, 2, 3] = value

    return change


def lose(name: str) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(card: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


FOREIGN: dict[str, tuple[Callable[[dict[str, Any], dict[str, torch.Tensor]], None], str]] = {
    "another version": (
        set_("format", value="trainenv world model 0"),
        "found 'trainenv world model 0'; build the model anew",
    ),
    "other features": (set_("state", value=["loss"]), "found one for others"),
    "other actions": (set_("action", value=[]), "found one for others"),
    "NaN weights": (poison(math.nan), "weights that are not finite"),
    "infinite weights": (poison(math.inf), "weights that are not finite"),
    "other sizes": (
        set_("architecture", "width", value=16),
        "weights of other shapes than the card says",
    ),
    "giant sizes": (
        set_("architecture", "hidden", value=10**9),
        "weights of other shapes than the card says",
    ),
    "no size": (set_("architecture", "width", value=0), "width must be at least 1"),
    "sizes in words": (set_("architecture", "width", value="wide"), "a card that does not fit"),
    "unknown sizes": (set_("architecture", "depth", value=3), "a card that does not fit"),
    "no weights": (lose("networks/gate.bias"), "weights of other shapes"),
    "no calibrations": (set_("calibrations", value={}), "a card that does not fit"),
    "calibrations of words": (
        set_("calibrations", "disagreement", value="x"),
        "a card that does not fit",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_whole_but_no_model_is_refused(name: str, mine: Path) -> None:
    change, sentence = FOREIGN[name]
    rewrite(mine, change)
    with pytest.raises(UserError, match=sentence):
        load(mine)


def test_a_model_without_rehearsal_or_calibrations(tmp_path: Path) -> None:
    folder = save(Model(model().networks), tmp_path / "a" / "b")
    assert load(folder).calibrations is None
    with pytest.raises(UserError, match=r"expected branches to rehearse in .*, found none"):
        load_rehearsal(folder)


def test_branches_that_are_none_are_refused(mine: Path) -> None:
    rewrite(mine, lose("rehearsal/looks"))
    load(mine)
    with pytest.raises(UserError, match="expected branches to rehearse"):
        load_rehearsal(mine)


def test_the_package_comes_with_a_model_of_at_most_2_megabytes() -> None:
    folder = serialization.pretrained()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * 2**20
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}  # no pickle
    here = worldmodel.load_pretrained()
    assert here is worldmodel.load_pretrained()
    assert here.calibrations is not None
    assert {"data", "recipe", "test", "digest"} <= here.card.keys()
    control, tried, _ = here.forecast(history(150, decision=6), TRIED)
    assert control.annealed.median == 0.0
    assert tried.annealed.low < tried.annealed.median < tried.annealed.high
    assert math.isfinite(tried.divergence)
    assert len(load_rehearsal(folder)) > 100
