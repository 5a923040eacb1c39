"""Runs with multi-token prediction: as values, on disk, steered, and in a trainer of another kind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from tests.support.mtp_models import gpt2, samples
from tests.support.steered_runs import QUICK, Promising
from trainenv import Intervention, RunFolder, TrainingRun, train
from trainenv.agents.branching import Branching
from trainenv.checkpoints.file import read, write
from trainenv.config.schema import RunConfig
from trainenv.envs import TrainingEnv
from trainenv.interventions import ActionCodec
from trainenv.loop import resume
from trainenv.models import add_heads
from trainenv.models.build import parameter_count
from trainenv.objectives import MTP
from trainenv.objectives.weightings import Critic, LowExcess, RandomSelection, Rho1, Shuffled
from trainenv.records.decision_files import read_decisions
from trainenv.records.run_folder import read_events
from trainenv.records.telemetry_log import read_telemetry, telemetry_of
from trainenv.rollouts.folded import Folded
from trainenv.types import UserError

SMALL: dict[str, Any] = {
    "steps": 60,
    "batch_size": 4,
    "model.width": 32,
    "model.context": 32,
    "schedule.warmup": 10,
    "validation.every": 20,
    "validation.sequences": 8,
    "checkpoints.every": 20,
}
REFERENCE = gpt2(seed=5)
OBJECTIVES: dict[str, Callable[[], MTP]] = {
    "uniform": MTP,
    "critic": lambda: MTP(weighting=Critic(value_steps=2, refresh_steps=2), calls_per_step=2),
    "Rho-1": lambda: MTP(weighting=Rho1(), reference=REFERENCE),
    "low excess": lambda: MTP(weighting=LowExcess(), reference=REFERENCE),
    "random": lambda: MTP(weighting=RandomSelection(), seed=3),
    "shuffled": lambda: MTP(weighting=Shuffled(), reference=REFERENCE),
}


def made(objective: MTP, kind: Any = "block", **settings: Any) -> TrainingRun:
    """Build a run on labelled samples, with two micro-batches a step."""
    model = gpt2(kind=kind, value=objective.weighting.needs_value)
    return TrainingRun(
        model,
        AdamW(model.parameters(), lr=1e-2),
        lambda index: samples(rows=4, seed=index),
        {"steps": 20, "accumulation": 2, "schedule": {"warmup": 2}, **settings},
        objective=objective,
        validation=[samples(seed=1000)],
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_forks_snapshots_and_files_repeat_a_run_to_the_bit(name: str, tmp_path: Path) -> None:
    run = made(OBJECTIVES[name]())
    run.advance(3)
    start = run.fingerprint()
    snapshot = run.snapshot()
    fork = run.fork()
    measured = [one.objective for one in run.advance(3)]
    end = run.fingerprint()
    assert fork.fingerprint() == start
    assert repr([one.objective for one in fork.advance(3)]) == repr(measured)
    assert fork.fingerprint() == end
    run.restore(snapshot)
    assert run.fingerprint() == start
    run.advance(3)
    assert run.fingerprint() == end
    write(snapshot, tmp_path / "saved")
    other = made(OBJECTIVES[name]())
    other.restore(read(tmp_path / "saved"), exact=True)
    assert other.fingerprint() == start
    other.advance(3)
    assert other.fingerprint() == end
    assert {"loss_0", "loss_3"} <= measured[-1].keys()
    assert all(math.isfinite(value) for value in measured[-1].values())


def test_forks_share_the_reference_and_nothing_else() -> None:
    run = made(OBJECTIVES["Rho-1"]())
    fork = run.fork()
    assert fork.objective.reference is run.objective.reference  # type: ignore[attr-defined]
    fork.apply(Intervention(emphasis="less"))
    assert fork.objective.kept_share == 0.5  # type: ignore[attr-defined]
    assert run.objective.kept_share == 0.6  # type: ignore[attr-defined]


def test_linear_heads_and_bf16_train() -> None:
    run = made(MTP(), "linear", precision="bf16")
    before = copy.deepcopy(run.model.state_dict())
    run.advance(3)
    after = run.model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_heads_are_in_the_ledger() -> None:
    """6 FLOPs for each use of a weight and each token, and the attention of further blocks."""
    runs = {
        heads: TrainingRun.from_config("mtp", SMALL | {"objective.heads": heads})
        for heads in (1, 4)
    }
    model: Any = runs[4].model
    block = sum(p.numel() for p in model.transformer.h[-1].parameters())
    tokens = 4 * 32
    more = 3 * (6 * block + 6 * model.lm_head.weight.numel() + 12 * 32 * 32)
    assert runs[4].flops_ahead - runs[1].flops_ahead == tokens * more
    assert runs[4].flops_per_evaluation == runs[1].flops_per_evaluation
    plain = TrainingRun.from_config("tiny", SMALL)
    assert runs[1].flops_ahead == plain.flops_ahead
    assert runs[4].flops_per_evaluation == plain.flops_per_evaluation


def test_a_configured_run_with_one_head_trains_like_next_token_prediction() -> None:
    one = TrainingRun.from_config("mtp", SMALL | {"objective.heads": 1, "accumulation": 2})
    two = TrainingRun.from_config("tiny", SMALL | {"accumulation": 2})
    losses = [[step.loss for step in run.advance(5)] for run in (one, two)]
    assert losses[0] == losses[1]
    ours, theirs = one.model.state_dict(), two.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_keys_that_do_not_fit_are_refused() -> None:
    for overrides, sentence in (
        ({"objective.weighting": "rho1"}, "needs a reference model"),
        ({"objective.weighting": "rho"}, "'uniform', 'critic'"),
        ({"objective.options": {"critic": {"betta": 1}}}, "did you mean 'beta'"),
        ({"objective.head_weights": [1, 1]}, "one weight for each of 4 heads"),
        ({"precision": "fp16"}, "set precision: bf16"),
        ({"objective.heads": 16, "model.context": 8}, "at most model.context"),
    ):
        with pytest.raises(UserError, match=sentence):
            RunConfig.load("mtp", overrides)
    nowhere = {"objective.weighting": "rho1", "objective.reference": "nowhere"}
    with pytest.raises(UserError, match=r"no folder and no \.safetensors"):
        TrainingRun.from_config("mtp", SMALL | nowhere)
    model = gpt2()
    del model.future_heads
    optimizer = AdamW(model.parameters())
    with pytest.raises(UserError, match="before you make the optimizer"):
        TrainingRun.from_config(
            "mtp", SMALL, model=model, optimizer=optimizer, batches=lambda index: samples()
        )


def test_the_parameters_of_the_heads_are_counted_before_they_are_made() -> None:
    for overrides in ({}, {"objective.head": "linear"}, {"objective.kind": "next_token"}):
        config = RunConfig.load("mtp", SMALL | overrides)
        run = TrainingRun.from_config(config)
        found = sum(p.numel() for p in run.model.parameters())
        assert found == parameter_count(config, 256)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_reference_from_an_export(ahead: bool, tmp_path: Path) -> None:
    from trainenv.checkpoints.interop import export

    earlier = TrainingRun.from_config("mtp" if ahead else "tiny", SMALL | {"seed": 1})
    path = export(earlier.snapshot(), tmp_path / "reference.safetensors")
    options = {"objective.weighting": "rho1", "objective.reference": str(path)}
    run = TrainingRun.from_config("mtp", SMALL | options | {"objective.reference_ahead": ahead})
    (step,) = run.advance(1)
    assert step.objective["kept_share"] == pytest.approx(
        (32 + 0.6 * (31 + 30 + 29)) / 122, abs=0.01
    )


# ── steering ──────────────────────────────────────────────────────────────────────────────────────


def test_an_emphasis_changes_the_kept_share_or_the_weight_of_the_heads() -> None:
    run = made(OBJECTIVES["Rho-1"]())
    snapshot = run.snapshot()
    made_of = repr(run.objective)
    for _ in range(4):
        run.apply(Intervention(emphasis="more"))
    assert repr(run.objective) == made_of  # as that of a worker process, which restores the state
    assert run.emphases == ("less",)
    assert run.objective.kept_share == 1.0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="can't be given 'more'"):
        run.apply(Intervention(emphasis="more", lr_scale=0.5))
    assert run.lr_scale == 1.0
    run.restore(snapshot)
    assert run.objective.kept_share == 0.6  # type: ignore[attr-defined]
    uniform = made(MTP())
    uniform.apply(Intervention(emphasis="less"))
    assert uniform.objective.head_scale == 0.8  # type: ignore[attr-defined]
    shuffled = made(OBJECTIVES["shuffled"]())
    shuffled.apply(Intervention(emphasis="less"))
    assert shuffled.objective.weighting.of.kept_share == 0.5  # type: ignore[attr-defined]
    plain = TrainingRun.from_config("tiny", SMALL)
    assert plain.emphases == ()
    with pytest.raises(UserError, match="needs an objective that can be steered"):
        plain.apply(Intervention(emphasis="less"))


def test_the_action_space_has_a_seventh_part_only_if_it_is_allowed() -> None:
    settings = RunConfig.load("mtp").interventions
    assert ActionCodec(settings).sizes == (4, 3, 5, 2, 2, 2)
    codec = ActionCodec(settings.model_copy(update={"allow_emphasis": True}))
    assert codec.sizes == (4, 3, 5, 2, 2, 2, 3)
    less = Intervention(emphasis="less")
    assert codec.decode(codec.encode(less)) == less
    assert codec.decode([0] * 7).does_nothing
    with pytest.raises(UserError, match=r"set interventions.allow_emphasis"):
        ActionCodec(settings).encode(less)
    with pytest.raises(UserError, match="6 whole numbers"):
        ActionCodec(settings).decode([0] * 7)
    run = made(MTP())
    assert codec.masks(run)[-1].tolist() == [True, True, True]
    plain = TrainingRun.from_config("tiny", SMALL)
    assert codec.masks(plain)[-1].tolist() == [True, False, False]
    assert "emphasis" not in Intervention(lr_scale=0.9).as_dict()  # as in earlier files
    with pytest.raises(UserError, match="one of less, more"):
        Intervention(emphasis="loud")  # type: ignore[arg-type]


def test_the_environment_steers_the_objective() -> None:
    env = TrainingEnv(
        "mtp",
        SMALL | {"interventions.allow_emphasis": True, "environment.decision_steps": 5},
    )
    env.reset(seed=0)
    assert env.action_space.nvec.tolist() == [4, 3, 5, 2, 2, 2, 3]
    action = np.array([0, 0, 0, 0, 0, 0, 1])
    _, reward, *_, info = env.step(action)
    assert math.isfinite(reward)
    assert list(info["masked"]) == []
    assert env.run.objective.head_scale == 0.8  # type: ignore[attr-defined]
    snapshot = env.snapshot()
    env.step(action)
    ahead = env.run.fingerprint()
    env.restore(snapshot)
    env.step(action)
    assert env.run.fingerprint() == ahead
    assert env.action_masks().shape == (21,)


def test_such_runs_are_not_folded() -> None:
    run = TrainingRun.from_config("mtp", SMALL)
    with pytest.raises(UserError, match="needs next-token prediction, found MTP"):
        Folded([run.fork(), run.fork()])


def test_the_loop_rewinds_verifies_and_resumes(tmp_path: Path) -> None:
    def started() -> TrainingRun:
        model = gpt2()
        return TrainingRun(
            model,
            AdamW(model.parameters(), lr=1e-2),
            lambda index: samples(seed=index % 7),
            {
                "steps": 72,
                "schedule": {"warmup": 0},
                "clip": {"policy": "none"},
                "monitor": {"block": 4, "probe_every": 1},
                "validation": {"every": 0},
                "checkpoints": {"every": 8, "moments": "exact"},
                "interventions": {"allow_emphasis": True},
                "branching": QUICK | {"parts": ["lr_scale", "emphasis"], "default_clip": False},
            },
            objective=MTP(weighting=RandomSelection()),
            validation=[samples(seed=1000)],
            probe=samples(seed=1001),
            stress=lambda step: -200.0 if step == 36 else 1.0,
        )

    def callback() -> Branching:
        sequences = [(Intervention(emphasis="less"),), (Intervention(lr_scale=0.9),)]
        return Branching(planner=Promising(sequences=sequences))

    ends = []
    for name, stop in (("whole", 10**9), ("stopped", 30)):
        run = started()
        path = tmp_path / name
        folder = RunFolder.create(path, run.config)
        train(run, folder, callback=callback(), stop=lambda run=run, stop=stop: run.step >= stop)
        if not run.done:
            run, again = started(), callback()
            reopened, _ = resume(path, run, again)
            train(run, reopened, callback=again)
        assert run.done
        ends.append(run.fingerprint())
        assert run.ledger["verify"] > 0
        assert run.ledger["rewound"] > 0
        kinds = {event["kind"] for event in read_events(path)}
        assert {"decision", "rewind"} <= kinds
        tried = [
            branch["interventions"]
            for decision in read_decisions(path)
            for branch in decision["branches"]
        ]
        assert [{"emphasis": "less"}] in tried
        rows = telemetry_of(read_telemetry(path, kept_only=True))
        assert {"loss_0", "loss_3", "weight_entropy"} <= rows[-1].objective.keys()
    assert ends[0] == ends[1]


# ── in a trainer of another kind ──────────────────────────────────────────────────────────────────


def test_a_trainer_of_transformers_calls_the_objective(tmp_path: Path) -> None:
    """The lean loss works with `loss.backward()` of somebody else, accumulation included."""
    from transformers import Trainer, TrainingArguments

    class Ahead(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
            return MTP()(model, inputs)

    torch.manual_seed(0)
    models = [gpt2(), gpt2()]
    data = [
        {"input_ids": row, "labels": label}
        for row, label in zip(samples(8)["tokens"], samples(8)["labels"], strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        weight_decay=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    Ahead(model=models[0], args=arguments, train_dataset=data).train()
    assert any(
        not torch.equal(one, two)
        for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )
    heads: Any = models[0].future_heads
    untrained: Any = models[1].future_heads
    for name in ("1", "2", "3"):
        assert not torch.equal(
            heads.further[name].mlp.c_fc.weight, untrained.further[name].mlp.c_fc.weight
        )


def test_heads_survive_saving_and_loading_with_transformers(tmp_path: Path) -> None:
    model: Any = gpt2()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    add_heads(again)
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "model.safetensors")
    again.load_state_dict(weights, strict=False)
    inputs = samples()["tokens"]
    assert torch.equal(MTP()(model.train(), inputs), MTP()(again.train(), inputs))
