"""Folded runs are the runs: each follows itself trained alone to rounding, and what is folded alike to the bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainenv.config.presets import find, read_yaml
from trainenv.objectives import NextToken
from trainenv.rollouts.folded import Folded, forward
from trainenv.run import TrainingRun
from trainenv.training.ledger import Ledger
from trainenv.types import CLIP_NAMES, Batch, Intervention, Telemetry, UserError

# An index that speaks, fires and flags within a few steps, so that its readings are compared here.
NERVOUS = read_yaml(find("uncertainty")) | {
    "window": 16,
    "min_history": 4,
    "threshold": 0.2,
    "single": 0.5,
    "lenient": 1.0,
}
SMALL: dict[str, Any] = {
    "steps": 60,
    "threads": 1,
    "batch_size": 2,
    "block_steps": 4,
    "reset_warmup": 6,
    "model": {"width": 16, "layers": 2, "heads": 2, "context": 8},
    "schedule.warmup": 5,
    "validation": {"every": 0, "sequences": 4},
    "monitor": {"block": 5, "probe_every": 3, "probe_sequences": 2, "uncertainty": NERVOUS},
    "interventions": {"allow_spam": True, "allow_data_reorder": True, "allow_skip_batch": True},
    "clip.options": {
        "zclip": {"warmup": 4},
        "arc": {"window": 4},
        "spam": {"interval": 6, "warmup": 2},
    },
}
STRESSED = {
    "batch_size": 4,  # of which a long sequence takes the room
    "stressors": {
        "rare_tokens": 0.2,
        "long_sequence": 0.3,
        "artefacts": 0.2,
        "block_shuffle": 0.9,
        "harsh_warmup_steps": 9,
        "planted": [
            {"at": 12, "kind": "random_tokens", "steps": 3},
            {"at": 14, "kind": "lr_spike", "steps": 2, "size": 4},
        ],
    },
}
KNOWN = (
    "step",
    "data_index",
    "tokens",
    "clip",
    "lr",
    "lr_scale",
    "weight_decay",
    "weight_decay_scale",
    "steps_since_reset",
)
KNOWN += ("progress", "stressors")  # what no arithmetic on weights goes into
# Small differences of larger numbers, norms that a spike blows up, or means over elements whose gradient is nothing but rounding
# (the bias of attention's keys):
LOOSE = {
    "grad_norm": 0.005,
    "clip_score": 0.05,
    "clip_threshold": 0.02,
    "hypergradient_cosine": 0.02,
    "update_ratio": 0.02,
}


def made(overrides: Mapping[str, Any] | None = None, **parts: Any) -> TrainingRun:
    return TrainingRun.from_config("tiny", {**SMALL, **(overrides or {})}, **parts)


@pytest.fixture(scope="module")
def calm() -> TrainingRun:
    """A run some steps in. Tests fork it."""
    run = made()
    run.advance(8)
    return run


@pytest.fixture(scope="module")
def stressed() -> TrainingRun:
    run = made(STRESSED)
    run.advance(8)
    return run


def forks(run: TrainingRun, count: int) -> list[TrainingRun]:
    """Forks with a ledger each."""
    listed = [run.fork() for _ in range(count)]
    for fork in listed:
        fork.ledger = Ledger()
    return listed


def assert_alike(
    folded: Sequence[Telemetry], single: Sequence[Telemetry], rel: float = 2e-4
) -> None:
    """Every field: the same where it is known beforehand, within rounding where it was measured, NaN where NaN."""
    assert len(folded) == len(single)
    for ours, theirs in zip(folded, single):
        for field in fields(Telemetry):
            found, expected = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name in KNOWN:
                assert found == expected, field.name
            elif field.name == "reading":
                found, expected = (
                    [getattr(r, f.name) for f in fields(r)] for r in (found, expected)
                )
                assert found == pytest.approx(expected, rel=0.02, abs=0.02)
            else:
                tolerance = {"rel": LOOSE.get(field.name, rel), "abs": LOOSE.get(field.name, 1e-6)}
                assert found == pytest.approx(expected, nan_ok=True, **tolerance), (
                    ours.step,
                    field.name,
                )


def state(run: TrainingRun) -> tuple[str, Mapping[str, float]]:
    """All of a run, to compare to the bit."""
    return run.fingerprint(), run.ledger.as_dict()


def bits(measured: Sequence[Sequence[Telemetry]]) -> list[list[str]]:
    """What was measured, exactly and with NaN equal to NaN."""
    return [[repr(t) for t in telemetry] for telemetry in measured]


# ── each follows itself trained alone ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("clip", CLIP_NAMES)
def test_runs_follow_single_ones_under_every_clip_policy(calm: TrainingRun, clip: str) -> None:
    together, alone = forks(calm, 3), forks(calm, 3)
    for runs in (together, alone):
        for run, scale in zip(runs, (1.0, 0.5, 1.1)):
            run.apply(Intervention(clip=clip, lr_scale=scale))  # type: ignore[arg-type]
    measured = Folded(together).advance(20)
    for telemetry, run in zip(measured, alone):
        expected = run.advance(20)
        assert_alike(telemetry, expected)
        assert any(t.clip_score > 0 for t in expected) == (clip != "none")
        assert any(not math.isnan(t.hypergradient_cosine) for t in telemetry)
        assert any(not math.isnan(t.attention_entropy) for t in telemetry)
    assert len({t[-1].loss for t in measured}) == 3


def steer(runs: Sequence[TrainingRun]) -> None:
    """Another thing done to each of eight runs."""
    _, reset, decay, reordered, skipping, kicked, lost, ending = runs
    reset.apply(Intervention(momentum_reset=True, lr_scale=1.1))
    decay.apply(Intervention(weight_decay_scale=2.0, lr_scale=0.8, clip="none"))
    reordered.apply(Intervention(data_reorder=True))
    skipping.flag(skipping.upcoming(12)[3::2])
    skipping.apply(Intervention(skip_batch=True))
    with torch.no_grad():
        for parameter in kicked.model.parameters():
            parameter.mul_(1.2)
    for moments in lost.optimizer.state.values():
        moments["exp_avg"].zero_()
    ending.spend(ending.config.steps - ending.step - 9)


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_is_steered_by_itself_on_its_own_data(stressed: TrainingRun, when: str) -> None:
    together, alone = forks(stressed, 8), forks(stressed, 8)
    if when == "before":
        steer(together)
    folded = Folded(together)
    if when == "after":
        steer(together)
    steer(alone)
    measured = folded.advance(20)
    for telemetry, run in zip(measured, alone):
        assert_alike(telemetry, run.advance(20))
    # What this is for, happens:
    assert any(
        len({"long_sequence" in t.stressors for t in step}) > 1 for step in zip(*measured)
    )  # shapes differ in a step
    assert len({tuple(t.data_index for t in telemetry) for telemetry in measured}) == 3
    assert {name for t in measured[0] for name in t.stressors} >= {
        "rare_tokens",
        "long_sequence",
        "random_tokens",
        "lr_spike",
    }
    assert len({t[-1].loss for t in measured}) == 8
    assert together[7].done
    assert not together[0].done
    for ours, theirs in zip(together, alone):
        assert ours.ledger.as_dict() == theirs.ledger.as_dict()
        assert (ours.step, ours.applied, ours.flagged) == (
            theirs.step,
            theirs.applied,
            theirs.flagged,
        )
        assert ours.evaluate() == pytest.approx(theirs.evaluate(), rel=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_a_fresh_run_has_no_moments_yet(count: int) -> None:
    run = made()
    together, alone = forks(run, count), forks(run, 1)[0]
    folded = Folded(together)
    assert not together[0].optimizer.state
    start = [run.snapshot() for run in together]
    measured, expected = folded.advance(20), alone.advance(20)
    for telemetry in measured:
        assert_alike(telemetry, expected, rel=1e-3)
    for fork, snapshot in zip(together, start):
        fork.restore(snapshot)  # back to where there were none
    assert not together[0].optimizer.state
    assert bits(folded.advance(20)) == bits(measured)


def test_runs_of_other_seeds_at_other_steps() -> None:
    together, alone = ([made({"seed": seed}) for seed in (1, 2)] for _ in range(2))
    for runs in (together, alone):
        runs[1].advance(7)
    for telemetry, run in zip(Folded(together).advance(12), alone):
        assert_alike(telemetry, run.advance(12), rel=1e-3)


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(
    heads=st.sampled_from([1, 2, 4]),
    layers=st.integers(1, 3),
    count=st.integers(1, 4),
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_forward_is_the_forward_of_each_model(
    heads: int, layers: int, count: int, batch: int, length: int, seed: int
) -> None:
    from transformers import GPT2Config

    from trainenv.models.gpt2 import GPT2

    torch.manual_seed(seed)
    shape = {
        "vocab_size": 11,
        "n_positions": 9,
        "n_embd": 8,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "use_cache": False,
    }
    config = GPT2Config(
        n_layer=layers, n_head=heads, activation_function="gelu_pytorch_tanh", **shape
    )
    model = GPT2(config)  # which takes a while to make
    models = [copy.deepcopy(model).eval() for _ in range(count)]
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # biases and norms too
        tokens = torch.randint(11, (count, batch, length))
        weights = {
            name: torch.stack([dict(model.named_parameters())[name] for model in models])
            for name in dict(models[0].named_parameters())
        }
        found = forward(weights, tokens, heads=heads, layers=layers)
        expected = torch.stack(
            [model(one).logits.flatten(0, 1) for model, one in zip(models, tokens)]
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_to_evaluate_together_is_to_evaluate_each(calm: TrainingRun) -> None:
    together, alone = forks(calm, 3), forks(calm, 3)
    folded = Folded(together)
    for run in together:
        run.apply(Intervention(lr_scale=0.5))
    folded.advance(3, among=[1])
    alone[1].apply(Intervention(lr_scale=0.5))
    alone[1].advance(3)
    before = [run.fingerprint() for run in together]
    losses = folded.evaluate()
    assert losses == pytest.approx([run.evaluate() for run in alone], rel=1e-5)
    assert losses == pytest.approx([run.evaluate() for run in together], rel=1e-6)
    assert losses[0] == losses[2] != losses[1]
    assert folded.evaluate([2, 1]) == pytest.approx([losses[2], losses[1]], rel=1e-6)
    assert folded.evaluate([]) == []
    assert [run.fingerprint() for run in together] == before
    assert (
        together[0].ledger.as_dict()["evaluate"] == 2 * alone[0].ledger.as_dict()["evaluate"]
    )  # folded, and by itself


def test_forks_may_charge_one_ledger(calm: TrainingRun) -> None:
    spent = []
    for folded in (True, False):
        parent = forks(calm, 1)[0]
        runs = [parent.fork() for _ in range(3)]
        if folded:
            Folded(runs).advance(6)
        else:
            for run in runs:
                run.advance(6)
        spent.append(parent.ledger.as_dict())
    assert spent[0] == pytest.approx(spent[1])
    assert spent[0]["verify"] > 0


# ── what is folded alike, to the bit ────────────────────────────────────────────────────────────────────────────────────────────


def test_two_folds_alike_give_the_same_bits(stressed: TrainingRun) -> None:
    found = []
    for _ in range(2):
        runs = forks(stressed, 8)
        folded = Folded(runs)
        steer(runs)
        found.append((bits(folded.advance(12)), folded.evaluate(), [state(run) for run in runs]))
    assert found[0] == found[1]


def test_going_on_from_a_snapshot_inside_a_fold_is_going_on(stressed: TrainingRun) -> None:
    runs = forks(stressed, 8)
    folded = Folded(runs)
    steer(runs)
    folded.advance(5)
    snapshots, marks = [run.snapshot() for run in runs], [run.fingerprint() for run in runs]
    expected = bits(folded.advance(7)), [run.fingerprint() for run in runs]
    for run, snapshot in zip(runs, snapshots):
        run.restore(snapshot, exact=True)
    assert [run.fingerprint() for run in runs] == marks
    assert (bits(folded.advance(7)), [run.fingerprint() for run in runs]) == expected
    others = forks(stressed, 8)
    other = Folded(others)
    for run, snapshot in zip(others, snapshots):
        run.restore(snapshot, exact=True)
    assert (bits(other.advance(7)), [run.fingerprint() for run in others]) == expected


def test_one_that_is_restored_leaves_the_others_alone(calm: TrainingRun) -> None:
    runs = forks(calm, 3)
    folded = Folded(runs)
    there = runs[1].snapshot()
    folded.advance(4)
    others = [runs[0].fingerprint(), runs[2].fingerprint()]
    runs[1].restore(there)
    assert [runs[0].fingerprint(), runs[2].fingerprint()] == others
    assert runs[1].step == runs[0].step - 4
    assert folded.evaluate()[1] == pytest.approx(calm.fork().evaluate(), rel=1e-6)


def test_a_snapshot_of_a_run_by_itself_does_not_fit(calm: TrainingRun) -> None:
    (run,) = forks(calm, 1)
    before = run.snapshot()
    Folded([run])
    mark = run.fingerprint()
    with pytest.raises(UserError, match="expected parameter groups of"):
        run.restore(before)
    assert run.fingerprint() == mark


def infect(run: TrainingRun) -> None:
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)


def kick(run: TrainingRun) -> None:
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(1.0)


def forget(run: TrainingRun) -> None:
    for moments in run.optimizer.state.values():
        moments["exp_avg"].zero_()
        moments["exp_avg_sq"].zero_()


@pytest.mark.parametrize("blow", [infect, kick, forget])
def test_a_blow_reaches_its_run_alone(
    calm: TrainingRun, blow: Callable[[TrainingRun], None]
) -> None:
    found = []
    for struck in (False, True):
        runs = forks(calm, 4)
        folded = Folded(runs)
        folded.advance(2)
        if struck:
            blow(runs[2])
        measured = bits(folded.advance(9))
        found.append((measured, folded.evaluate(), [state(run) for run in runs]))
    for healthy, beside in zip(*found):
        for number in (0, 1, 3):
            assert healthy[number] == beside[number]
        assert healthy[2] != beside[2]
    assert (blow is infect) == math.isnan(found[1][1][2])


def test_beside_a_lost_run_it_is_as_without_it(calm: TrainingRun) -> None:
    runs, fewer = forks(calm, 3), forks(calm, 2)
    infect(runs[1])
    folded, without = Folded(runs), Folded(fewer)
    lost = folded.advance(10)
    for telemetry, expected in zip((lost[0], lost[2]), without.advance(10)):
        assert_alike(telemetry, expected)
    assert all(math.isnan(t.loss) for t in lost[1])
    for telemetry, expected in zip(folded.advance(5, [0, 2]), without.advance(5)):
        assert_alike(telemetry, expected)


# ── some of them ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_those_among_take_part(calm: TrainingRun) -> None:
    runs = forks(calm, 4)
    folded = Folded(runs)
    idle = [state(runs[number]) for number in (0, 2)]
    measured = folded.advance(6, among=[3, 1])
    assert [state(runs[number]) for number in (0, 2)] == idle
    assert [run.step - calm.step for run in runs] == [0, 6, 0, 6]
    assert bits(measured)[0] == bits(measured)[1]  # alike, and so to the bit
    assert folded.advance(3, among=[]) == []
    assert folded.advance(0) == [[], [], [], []]
    for telemetry in folded.advance(6, among=[0, 2]):  # catches up
        assert_alike(telemetry, measured[0])


def test_the_order_of_the_numbers_is_the_order_of_what_comes_back(calm: TrainingRun) -> None:
    found = []
    for among in ([0, 1, 2], [2, 0, 1]):
        runs = forks(calm, 3)
        runs[0].apply(Intervention(lr_scale=0.5))
        runs[1].apply(Intervention(data_reorder=True))
        folded = Folded(runs)
        measured, losses = (
            dict(zip(among, folded.advance(6, among))),
            dict(zip(among, folded.evaluate(among))),
        )
        found.append(
            ([measured[number] for number in range(3)], [losses[number] for number in range(3)])
        )
    (telemetry, losses), (permuted, same) = found
    for ours, theirs in zip(permuted, telemetry):
        assert_alike(ours, theirs)
    assert same == pytest.approx(losses, rel=1e-5)
    assert len(set(losses)) == 3


STEP = st.tuples(
    st.sets(st.integers(0, 2), min_size=1),
    st.integers(1, 4),
    st.sampled_from(
        [
            Intervention(),
            Intervention(lr_scale=0.8),
            Intervention(momentum_reset=True),
            Intervention(data_reorder=True),
            Intervention(clip="arc", weight_decay_scale=0.5),
        ]
    ),
    st.booleans(),
)


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(script=st.lists(STEP, min_size=2, max_size=4))
def test_whatever_is_done_in_whatever_order(
    stressed: TrainingRun, script: list[tuple[set[int], int, Intervention, bool]]
) -> None:
    together, alone = forks(stressed, 3), forks(stressed, 3)
    folded = Folded(together)
    for among, steps, intervention, again in script:
        numbers = sorted(among)
        for number in numbers:
            together[number].apply(intervention)
            alone[number].apply(intervention)
        here = [together[number].snapshot() for number in numbers]
        measured = folded.advance(steps, numbers)
        if again:
            for number, snapshot in zip(numbers, here):
                together[number].restore(snapshot)
            once = bits(measured)
            measured = folded.advance(steps, numbers)
            assert bits(measured) == once
        for number, telemetry in zip(numbers, measured):
            assert_alike(telemetry, alone[number].advance(steps))
    assert folded.evaluate() == pytest.approx([run.evaluate() for run in alone], rel=1e-4)


# ── refused ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Doubled(NextToken):
    """A loss of one's own."""

    def __call__(self, model: nn.Module, tokens: torch.Tensor, /) -> torch.Tensor:
        return 2 * super().__call__(model, tokens)


def sgd(run: TrainingRun) -> None:
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)


def amsgrad(run: TrainingRun) -> None:
    run.optimizer.param_groups[1]["amsgrad"] = True


def frozen(run: TrainingRun) -> None:
    run.model.transformer.wpe.weight.requires_grad_(False)  # type: ignore[union-attr]


def regrouped(run: TrainingRun) -> None:
    groups = run.optimizer.param_groups
    groups[1]["params"].append(groups[0]["params"].pop())


def set_to(name: str, value: Any) -> Callable[[TrainingRun], None]:
    return lambda run: setattr(run.model.config, name, value)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[TrainingRun], Any], str]] = {
    "sgd": ({}, sgd, "needs AdamW, found SGD"),
    "amsgrad": ({}, amsgrad, "AdamW without amsgrad"),
    "bf16": ({"precision": "bf16"}, id, "needs precision fp32, found bf16"),
    "accumulation": ({"accumulation": 2}, id, "needs one micro-batch a step, found 2"),
    "objective": (
        {},
        lambda run: setattr(run, "objective", Doubled()),
        "needs next-token prediction, found Doubled",
    ),
    "dropout": ({"model.dropout": 0.1}, id, "needs no dropout, found 0.1"),
    "stable start": (
        {"model.init": "stable"},
        id,
        "needs GPT-2's own initialisation, found ScaledEmbedding",
    ),
    "activation": (
        {},
        set_to("activation_function", "relu"),
        "needs activation_function gelu_pytorch_tanh, found relu",
    ),
    "epsilon": ({}, set_to("layer_norm_epsilon", 0.1), "needs layer_norm_epsilon 1e-05, found 0.1"),
    "attention": (
        {},
        set_to("scale_attn_by_inverse_layer_idx", True),
        "scale_attn_by_inverse_layer_idx False, found True",
    ),
    "doubles": ({}, lambda run: run.model.double(), "needs float32 weights, found float64"),
    "frozen": (
        {},
        frozen,
        "needs an optimizer of all its weights, found left out: transformer.wpe.weight",
    ),
    "groups": ({}, regrouped, "the optimizer groups of the first run, found another"),
    "wider": (
        {"model.width": 32},
        id,
        "needs the shape .* of the first run, found another transformer.wte.weight",
    ),
    "deeper": ({"model.layers": 3}, id, "needs the shape .* of the first run"),
    "heads": ({"model.heads": 4}, id, "needs the heads of the first run, found 4"),
    "device": (
        {},
        lambda run: setattr(run, "device", torch.device("meta")),
        r"the device of the first run \(.*\), found meta",
    ),
    "validation": (
        {"validation.sequences": 2},
        id,
        r"a validation set shaped as the first run's, found \[\(2, 9\)\]",
    ),
    "folded": ({}, lambda run: Folded([run]), "not folded yet, found one that is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_computed_otherwise_is_refused_and_nothing_changed(
    calm: TrainingRun, name: str
) -> None:
    overrides, change, message = REFUSED[name]
    good, bad = forks(calm, 1)[0], made({**overrides, "monitor.enabled": False})
    change(bad)
    before, optimizer = state(good), good.optimizer
    with pytest.raises(UserError, match=message):
        Folded([good, bad])
    assert state(good) == before
    assert good.optimizer is optimizer
    assert not good.folded
    assert len(good.advance(1)) == 1  # and is trained by itself as ever


def test_of_models_gpt2_alone_is_folded() -> None:
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
    run = made(
        {"monitor.enabled": False},
        model=model,
        batches=lambda index: torch.zeros(2, 9, dtype=torch.int64),
    )
    with pytest.raises(
        UserError, match="needs a GPT-2 of ours, found Sequential; train it by itself"
    ):
        Folded([run])


def test_none_or_one_twice_is_refused(calm: TrainingRun) -> None:
    with pytest.raises(UserError, match="expected runs to fold, found none"):
        Folded([])
    (run,) = forks(calm, 1)
    with pytest.raises(UserError, match="each run once"):
        Folded([run, run])
    assert not run.folded


def test_a_folded_run_is_not_trained_nor_forked_by_itself(calm: TrainingRun) -> None:
    runs = forks(calm, 2)
    Folded(runs)
    before = state(runs[0])
    with pytest.raises(UserError, match="call `advance` of its `Folded`"):
        runs[0].advance(1)
    with pytest.raises(UserError, match="fork before folding"):
        runs[0].fork()
    assert state(runs[0]) == before


def test_wrong_numbers_are_refused(calm: TrainingRun) -> None:
    runs = forks(calm, 2)
    folded = Folded(runs)
    before = [state(run) for run in runs]
    for among in ([0, 0], [2], [-1]):
        with pytest.raises(UserError, match=r"from 0 to 1, found \["):
            folded.advance(1, among)
        with pytest.raises(UserError, match=r"from 0 to 1, found \["):
            folded.evaluate(among)
    with pytest.raises(UserError, match="steps must be 0 or more, found -1"):
        folded.advance(-1)
    assert [state(run) for run in runs] == before


def test_without_a_validation_set_there_is_no_loss(calm: TrainingRun) -> None:
    run = made(validation=[])
    with pytest.raises(UserError, match="no validation set"):
        Folded([run]).evaluate()


def test_a_failure_leaves_nothing_half_done() -> None:
    """Going on from a snapshot, as by itself; what the failed steps measured does not come back."""
    fails: list[int] = []

    def batches(index: int) -> Any:
        if index in fails:
            raise OSError("the disk is gone")
        tokens = torch.arange(2 * 9).view(2, 9) * (index + 1) % 256
        return Batch((tokens, tokens), index) if index == 9 else tokens

    own = {"model": made().model, "validation": [torch.zeros(2, 9, dtype=torch.int64)]}
    run = made(batches=batches, **own)
    runs = [run.fork(), run.fork()]
    folded = Folded(runs)
    folded.advance(2)
    there = [run.snapshot() for run in runs]
    expected = bits(folded.advance(5))
    for one, snapshot in zip(runs, there):
        one.restore(snapshot)
    fails.append(5)
    with pytest.raises(OSError, match="the disk is gone"):
        folded.advance(5)
    assert all(row.grad is None for one in runs for row in one._parameters)
    fails.clear()
    for one, snapshot in zip(runs, there):
        one.restore(snapshot)
    assert bits(folded.advance(5)) == expected
    with pytest.raises(UserError, match="needs one micro-batch a step, found 2"):
        folded.advance(5)
    assert [one.step for one in runs] == [9, 9]
    assert len(expected[0]) == 5
