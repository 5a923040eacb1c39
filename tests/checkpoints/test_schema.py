"""The list of fields: every state of ours has exactly these, and whatever has not is refused by the name of the field."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainenv import Intervention, TrainingConfig, TrainingRun
from trainenv.checkpoints import schema
from trainenv.checkpoints.schema import check_header, check_state
from trainenv.config.presets import configs_folder, read_yaml
from trainenv.envs.synthetic import SyntheticEnv
from trainenv.envs.training import TrainingEnv
from trainenv.types import UserError

SMALL: dict[str, Any] = {
    "device": "cpu",
    "steps": 40,
    "batch_size": 2,
    "model.context": 16,
    "model.width": 16,
    "validation.sequences": 4,
    "monitor.probe_every": 1,
    "monitor.uncertainty.min_history": 4,
}
MARK = {"__tensor__": "model/w"}


def trained(settings: Mapping[str, Any] = SMALL, steps: int = 6) -> TrainingRun:
    run = TrainingRun.from_config("tiny", {**SMALL, **settings})
    run.advance(steps)
    return run


@pytest.fixture(scope="module")
def whole() -> Mapping[str, Any]:
    """A state with something in every part. Copied before it is changed."""
    run = trained({"clip.policy": "zclip"}, 20)
    run.apply(Intervention(lr_scale=0.8, data_reorder=True, momentum_reset=True))
    run.flag([30])
    run.apply(Intervention(skip_batch=True, clip="arc"))
    run.advance(4)
    return run.snapshot().state


@pytest.fixture
def state(whole: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(dict(whole))


def header(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": "trainenv checkpoint",
        "schema": 1,
        "tier": "exact",
        "drift": None,
        "step": 24,
        "sequence": 1,
        "memory_bytes": 4,
        "state": state,
        "tensors": {"model/w": ["float32", [1]]},
        "rounded": {},
    }


def put(state: Any, path: str, value: Any) -> None:
    *above, last = path.split(".")
    for part in above:
        state = state[int(part) if isinstance(state, list) else part]
    state[int(last) if isinstance(state, list) else last] = value


# ── what is ours passes ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "fp16"},
        {"precision": "bf16", "accumulation": 2},
        {"monitor.enabled": False},
        {"model.dropout": 0.1, "threads": 1, "deterministic": True},
        *({"clip.policy": name} for name in ("none", "arc", "spam")),
    ],
    ids=str,
)
def test_every_kind_of_run_passes(settings: dict[str, Any]) -> None:
    for steps in (0, 1, 8):
        check_state(trained(settings, steps).snapshot().state, "it")


def test_a_run_that_was_steered_passes(whole: Mapping[str, Any]) -> None:
    assert whole["order"]["skips"]
    assert whole["order"]["reorders"]
    assert len(whole["applied"]) == 2
    assert None not in whole["monitor"]["tracks"]["loss"]["scalars"]
    check_state(whole, "it")
    check_header(header(whole), "it")


def test_a_run_that_was_lost_passes() -> None:
    run = trained({"clip.policy": "none"})
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    run.advance(3)
    check_state(run.snapshot().state, "it")


def test_environments_pass() -> None:
    env = TrainingEnv("tiny", SMALL)
    env.reset(seed=0)
    check_state(env.snapshot().state, "it")
    env.step([0] * 6)
    assert "environment" in env.snapshot().state
    check_state(env.snapshot().state, "it")
    synthetic = SyntheticEnv(decisions=12)
    synthetic.reset(seed=0)
    for action in ([0] * 6, [1, 0, 2, 1, 0, 0], [3, 2, 1, 0, 0, 0]):
        check_state(synthetic.snapshot().state, "it")
        synthetic.step(action)
    check_state(synthetic.snapshot().state, "it")
    check_header(header(synthetic.snapshot().state) | {"tensors": {}}, "it")


class Weighted(nn.Module):
    """A loss with a buffer and a state of its own that is no tensor."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, model: nn.Module, tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {"notes": [1, "two", None]}

    def set_extra_state(self, state: Any) -> None:
        pass


class Noted(torch.optim.SGD):
    """An optimizer that keeps more than torch's do."""

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "notes": {"phase": "warm", "means": [torch.zeros(2)]},
            "calls": 3,
        }


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
        lambda p: torch.optim.RMSprop(p),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.Rprop(p),
        lambda p: Noted(p, lr=0.1),
    ],
    ids=["SGD", "momentum", "tensor rate", "RMSprop", "Adagrad", "Rprop", "its own"],
)
def test_a_user_s_own_parts_pass(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.BatchNorm1d(8), nn.Linear(4, 8))
    config = TrainingConfig(steps=10, monitor={"probe_every": 0})
    run = TrainingRun(
        model,
        make(model.parameters()),
        lambda index: torch.full((2, 9), index % 8),
        config,
        objective=Weighted(),
    )
    run.advance(2)
    check_state(run.snapshot().state, "it")


# ── what is not ours is named ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "model",
        "horizon",
        "horizon.since",
        "rng.torch",
        "monitor.tracks.loss.residuals",
        "monitor.forecasters.covariance",
        "applied.0.1.lr_scale",
        "ledger.rewound",
        "numerics.threads",
        "statistics.loss",
        "optimizer.param_groups.0.params",
    ],
)
def test_a_missing_field_is_named(path: str, state: dict[str, Any]) -> None:
    *above, last = path.split(".")
    inner: Any = state
    for part in above:
        inner = inner[int(part) if isinstance(inner, list) else part]
    del inner[last]
    with pytest.raises(UserError, match=rf"cp_4\.ptz: the field '{re.escape(path)}' is missing"):
        check_state(state, "cp_4.ptz")
    with pytest.raises(UserError, match=rf"the field 'state\.{re.escape(path)}' is missing"):
        check_header(header(state), "cp_4.ptz")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("horizn", "horizon"),
        ("horizon.sinc", "since"),
        ("monitor.tracks.los", "loss"),
        ("monitor.tracks.loss.scalar", "scalars"),
        ("applied.1.1.lr_scal", "lr_scale"),
        ("ledger.rewind", "rewound"),
        ("numerics.thread", "threads"),
        ("rng.cud", "cuda"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(
    path: str, meant: str, state: dict[str, Any]
) -> None:
    put(state, path, 1)
    with pytest.raises(
        UserError,
        match=rf"unknown field '{re.escape(path)}'; did you mean '{meant}'\?; valid here: ",
    ):
        check_state(state, "it")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("lr_scale", "0.5", "must be float, found the text '0.5'"),
        ("lr_scale", True, "must be float, found true"),
        ("seed", 1.0, "must be int, found 1.0"),
        ("seed", False, "must be int, found false"),
        ("reset_at", "never", "must be int, found the text 'never'"),
        ("model", [], "must be a mapping, found a list of 0"),
        ("model", 3, "must be a mapping, found 3"),
        ("flagged", {}, "must be a list, found a mapping of 0 fields"),
        ("flagged.0", 1.5, "must be int, found 1.5"),
        ("clip.name", None, "must be str, found null"),
        ("rng.torch", {}, "must be a tensor, found a mapping of 0 fields"),
        ("rng.torch", {"__tensor__": 3}, "must be a tensor"),
        ("rng.torch", {**MARK, "more": 1}, "must be a tensor, found the mark of a tensor"),
        ("applied.0", [1], "must be a list of 2, found a list of 1"),
        ("applied.0.1.clip", 3, "must be str, found 3"),
        ("monitor.tracks.loss.residuals.2", None, "must be float, found null"),
        ("monitor.forecasters.covariance.1.2.3", "x", "must be float, found the text 'x'"),
        ("monitor.counts", [1.0, 2], "must be a list of 3, found a list of 2"),
        ("numerics.precision", "fp8", "must be fp32 or bf16 or fp16, found the text 'fp8'"),
        ("numerics.precision", ["fp32"], "must be fp32 or bf16 or fp16, found a list of 1"),
        ("numerics.deterministic", 1, "must be bool, found 1"),
    ],
)
def test_a_field_of_another_type_is_named(
    path: str, value: Any, told: str, state: dict[str, Any]
) -> None:
    put(state, path, value)
    with pytest.raises(UserError) as error:
        check_state(state, "it")
    assert str(error.value).startswith(f"it: the field {path!r} {told}")
    assert "state_schema_v1.yaml" in str(error.value)


@pytest.mark.parametrize(
    "mark", [{"__tensor__": None}, {"__tensor__": []}, {"__tensor__": "a", "b": 1}]
)
@pytest.mark.parametrize("place", ["model.w", "optimizer.state.0", "clip.state.mean", "objective"])
def test_a_spoilt_mark_is_found_anywhere(place: str, mark: Any, state: dict[str, Any]) -> None:
    put(state, place, mark)
    with pytest.raises(
        UserError,
        match=rf"'{re.escape(place)}[^']*' must be a (tensor|mapping), found the mark of a tensor",
    ):
        check_state(state, "it")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3, 10**400])
def test_any_number_is_a_float(value: float, state: dict[str, Any]) -> None:
    put(state, "monitor.tracks.loss.residuals.0", value)
    put(state, "lr_scale", value)
    check_state(state, "it")


@pytest.mark.parametrize(
    "field",
    ["format", "schema", "tier", "drift", "step", "sequence", "memory_bytes", "state", "tensors"],
)
def test_each_field_of_a_header_is_needed(field: str, state: dict[str, Any]) -> None:
    whole = header(state)
    with pytest.raises(UserError, match=f"the field '{field}' is missing"):
        check_header({key: value for key, value in whole.items() if key != field}, "it")
    with pytest.raises(UserError, match=f"the field '{field}' must be"):
        check_header({**whole, field: 1.5}, "it")


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "9bit"},
        {"tensors": {"a": ["float32"]}},
        {"tensors": {"a": ["float32", [1.0]]}},
        {"tensors": {"a": ["float32", [True]]}},
        {"tensors": [["a", "float32"]]},
        {"rounded": {"a": 1}},
        {"drfit": None},
    ],
    ids=str,
)
def test_headers_that_are_none(change: dict[str, Any], state: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        check_header(header(state) | change, "it")


# ── whatever it is ──────────────────────────────────────────────────────────────────────────────────────────────────


def deep(value: Any, levels: int = 100_000) -> Any:
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = [
    None,
    True,
    3,
    "text",
    b"bytes",
    [],
    {},
    [[]],
    {"model": {}},
    {"synthetic": None},
    {"synthetic": {}},
    {3: 4},
    object(),
]


@pytest.mark.parametrize("found", HOSTILE, ids=lambda found: repr(found).split(" at ")[0])
def test_anything_else_is_refused(found: Any) -> None:
    for check in (check_state, check_header):
        with pytest.raises(UserError):
            check(found, "it")
        with pytest.raises(UserError):
            check_header(header(found), "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=12) | st.just("__tensor__"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    path=st.sampled_from(
        ["", *(f"{a}.{b}" for a, b in [("rng", "x"), ("horizon", "end"), ("model", "w")])]
    ),
    value=JSON,
)
def test_nothing_but_a_refusal_comes_of_anything(
    path: str, value: Any, whole: Mapping[str, Any]
) -> None:
    spoilt: Any = copy.deepcopy(dict(whole))
    if path:
        put(spoilt, path, value)
    else:
        spoilt = value
    for check, found in (
        (check_state, spoilt),
        (check_header, header(spoilt)),
        (check_header, spoilt),
    ):
        with suppress(UserError):
            check(found, "it")


def test_what_is_nested_without_end_is_looked_through(state: dict[str, Any]) -> None:
    state["model"]["w"] = deep(1.0)
    check_state(state, "it")
    state["model"]["w"] = deep({"__tensor__": 1})
    with pytest.raises(UserError, match=r"'model\.w' must be a tensor"):
        check_state(state, "it")
    state["model"]["w"] = MARK
    state["monitor"]["forecasters"]["covariance"] = deep(1.0)
    with pytest.raises(UserError, match="must be float, found a list of 1"):
        check_state(state, "it")


def test_messages_stay_short(state: dict[str, Any]) -> None:
    for change in (
        {"x" * 10**7: 1},
        {"lr_scale": "y" * 10**7},
        {"seed": 1.5, "flagged": [0] * 10**6},
        {"lr_scale": [10**5000]},
    ):
        with pytest.raises(UserError) as error:
            check_state({**state, **change}, "it")
        assert len(str(error.value)) < 600
    with pytest.raises(UserError) as error:
        check_state({**state, "clip": {"name": 10**5000, "state": {}}}, "it")
    assert "a huge int" in str(error.value)
    with pytest.raises(UserError) as error:
        check_state({**state, "\x1b[2J\n": 1}, "it")
    assert str(error.value).isprintable()


def test_it_takes_no_time(whole: Mapping[str, Any]) -> None:
    """About half a millisecond for 148 parameters; ten times as much is allowed for on a busy machine."""
    mark, entry = dict(MARK), {name: dict(MARK) for name in ("step", "exp_avg", "exp_avg_sq")}
    state = {**whole, "model": {f"h.{n}": mark for n in range(149)}}
    state["optimizer"] = {**whole["optimizer"], "state": {str(n): entry for n in range(148)}}
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        check_state(state, "it")
        taken.append(time.perf_counter() - start)
    assert min(taken) < 5e-3


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_field_is_explained() -> None:
    """By a comment beside it, or as the part that it is."""
    text = (configs_folder() / schema.SCHEMA).read_text(encoding="utf-8")
    parts = set(read_yaml(configs_folder() / schema.SCHEMA))
    bare = [
        line
        for line in text.splitlines()
        if (found := re.match(r"\s+(?:- )?([\w?]+): ?([^#{\[]*)$", line))
        and found[2].rstrip("?") not in parts
    ]
    assert bare == []


def test_it_is_read_once(state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    check_state(state, "it")
    monkeypatch.setattr(schema, "read_yaml", None)
    check_state(state, "it")
    check_header(header(state), "it")
