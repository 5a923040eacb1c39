"""Speculative verification: the run is as it was whatever a branch does, what fails is marked, and the winner becomes the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from torch import Tensor

from tests.support.bigram import raises
from tests.support.branched_runs import SMALL, draft, forecast, lr, plain, toy
from trainenv.rollouts.folded import Folded
from trainenv.run import TrainingRun
from trainenv.types import Branch, Intervention, Measure, UserError, Verdict
from trainenv.verification.early_stopping import Losing
from trainenv.verification.rules import Annealed, Risk
from trainenv.verification.verify import Verification, adopt

FAST = lr(30.0)
FATAL = lr(1e12)


@dataclass(frozen=True)
class Everything:
    """Accepts all; ranks by the draft, or by nothing at all."""

    ranks: bool = True
    measure: ClassVar[Measure] = "horizon"

    def objection(self, branch: Branch, control: Branch, /) -> str:
        return ""

    def rank(self, branch: Branch, /) -> float:
        return branch.score if self.ranks else math.nan


def verify(
    run: TrainingRun, *sequences: Any, steps: int = 10, **settings: Any
) -> tuple[Verdict, Any]:
    verification = Verification(verify_steps=steps, **{"stopping": None, "cooldown": 4} | settings)
    rollouts = verification.rollouts(run, decision_steps=4)
    return verification.verify(rollouts, draft(*sequences), horizon=40), rollouts


def fates(verdict: Verdict) -> list[str]:
    return [branch.fate for branch in verdict.branches]


def standing(run: TrainingRun) -> tuple[Any, ...]:
    return (
        run.fingerprint(),
        run.ledger["main"],
        run.ledger["rewound"],
        run.ledger["plan"],
        run.horizon,
        run.applied,
    )


@pytest.fixture(scope="module")
def tiny() -> TrainingRun:
    run = TrainingRun.from_config("tiny", SMALL)
    run.advance(10)
    return run


# ── whatever happens, the run is as it was ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", [Everything(), Annealed(), Risk()])
@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (lambda: MemoryError("none left"), "MemoryError"),
        (lambda: RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (lambda: BrokenPipeError("a worker died"), "a worker died"),
    ],
)
def test_a_branch_that_raises_is_marked_and_the_others_are_judged(
    rule: Any, raised: Callable[[], Exception], said: str
) -> None:
    run = toy(trouble=raises(raised))
    before = standing(run)
    verdict, _ = verify(run, FAST, lr(0.9), rule=rule)
    assert standing(run) == before
    assert fates(verdict)[:2] == ["control", "failed"]
    assert said in verdict.branches[1].reason
    assert verdict.branches[2].fate in ("accepted", "rejected")
    assert math.isfinite(verdict.branches[2].delta)
    assert math.isnan(verdict.branches[1].delta)
    assert verdict.cost.flops == pytest.approx(run.ledger["verify"] + run.ledger["evaluate"])


@pytest.mark.parametrize("fold", [True, False])
def test_a_loss_that_is_lost(tiny: TrainingRun, fold: bool) -> None:
    run = tiny.fork("main")
    before = standing(run)
    verdict, _ = verify(run, lr(1e12, clip="none"), lr(0.9), rule=Everything(), fold=fold)
    assert standing(run) == before
    assert fates(verdict) == ["control", "failed", "accepted"]
    assert verdict.branches[1].reason == "it diverged"
    assert verdict.accepted == 2


def test_a_loss_beyond_the_cap() -> None:
    run = toy()
    verdict, rollouts = verify(run, lr(3e3), lr(0.9), rule=Everything())
    assert fates(verdict) == ["control", "failed", "accepted"]
    assert verdict.branches[1].outcome.validation[-1] > 1.5 * run.uniform_loss
    assert rollouts.future(lr(3e3), 10).state is None


def lost_unless_slow(run: TrainingRun) -> None:
    """From here on the run goes to pieces, unless its learning rate is brought down."""
    run._rates = replace(run._rates, stress=lambda step: 3e4 if step >= 8 else 1.0)


@pytest.mark.parametrize("rule", [Everything(), Annealed(), Risk()])
def test_where_doing_nothing_is_lost_what_holds_up_becomes_the_run(rule: Any) -> None:
    run = toy()
    lost_unless_slow(run)
    verdict, rollouts = verify(run, lr(0.9), lr(1e-3), lr(2e-3), rule=rule)
    assert fates(verdict)[:2] == ["control", "failed"]
    assert sorted(fates(verdict)[2:]) == ["accepted", "passed"]
    assert verdict.reason == "doing nothing failed, this holds up"
    best = verdict.branches[verdict.accepted or 0]
    assert math.isfinite(best.delta)
    if rule.measure == "annealed":
        assert best.annealed_delta == min(b.annealed_delta for b in verdict.branches[2:])
    kept = adopt(rollouts, verdict)
    assert [t.step for t in kept] == list(range(9, 19))
    assert run.lr_scale < 1


def test_where_all_are_lost_the_run_stays() -> None:
    run = toy()
    lost_unless_slow(run)
    before = standing(run)
    verdict, rollouts = verify(run, lr(0.9), lr(1.1), rule=Everything())
    assert fates(verdict) == ["control", "failed", "failed"]
    assert verdict.accepted is None
    assert adopt(rollouts, verdict) == ()
    assert standing(run) == before
    assert verdict.wasted == verdict.cost.flops > 0


def test_where_nothing_can_be_trained_nothing_is_raised() -> None:
    def always(weight: Tensor) -> None:
        if armed:
            raise MemoryError

    armed: list[int] = []
    run = toy(trouble=always)
    armed.append(1)
    before = standing(run)
    verdict, rollouts = verify(run, lr(0.9), rule=Everything())
    assert standing(run) == before
    assert verdict.branches[0].reason.startswith("MemoryError")
    assert (verdict.accepted, fates(verdict)) == (None, ["control", "failed"])
    assert adopt(rollouts, verdict) == ()


def test_folding_that_fails_costs_what_it_cost(
    tiny: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(folded: Folded, among: Any = None) -> Any:
        raise MemoryError

    monkeypatch.setattr(Folded, "evaluate", no_memory)
    run = TrainingRun.from_config("tiny", SMALL)
    verdict, _ = verify(run, lr(0.9), rule=Everything(), steps=4)
    assert fates(verdict) == ["control", "accepted"]
    assert verdict.cost.flops == pytest.approx(run.ledger["verify"] + run.ledger["evaluate"])
    assert verdict.cost.steps == 16  # 4 of each, twice


# ── what becomes the run ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_control_is_the_run_trained_by_itself(tiny: TrainingRun) -> None:
    run, twin = tiny.fork("main"), tiny.fork("main")
    verdict, rollouts = verify(run, lr(0.5), lr(1.1), rule=Annealed(margin=9.0), fold=False)
    assert verdict.accepted is None
    kept = adopt(rollouts, verdict)
    expected = twin.advance(10)
    assert run.fingerprint() == twin.fingerprint()
    assert plain(kept) == plain(tuple(expected))


def test_folded_verdicts_are_equal_and_within_rounding_of_single_ones(tiny: TrainingRun) -> None:
    found = [
        verify(tiny.fork("main"), lr(0.5), lr(1.1), rule=Annealed(), fold=fold)[0]
        for fold in (True, True, False)
    ]
    assert plain(found[0]) == plain(found[1])
    for one, two in zip(found[0].branches, found[2].branches):
        assert one.losses == pytest.approx(two.losses, rel=1e-4)
        assert one.delta == pytest.approx(two.delta, abs=1e-4, nan_ok=True)
        assert one.annealed_delta == pytest.approx(two.annealed_delta, abs=1e-4, nan_ok=True)
        assert one.fate == two.fate
    assert found[0].branches[1].losses != found[2].branches[1].losses


def test_a_folded_winner_goes_on_within_rounding(tiny: TrainingRun) -> None:
    runs = []
    for fold in (True, False):
        run = tiny.fork("main")
        verdict, rollouts = verify(run, lr(0.5), rule=Everything(), fold=fold)
        adopt(rollouts, verdict)
        assert run.lr_scale == 0.5
        runs.append(run)
    ours, theirs = (run.advance(8) for run in runs)
    assert [t.loss for t in ours] == pytest.approx([t.loss for t in theirs], rel=1e-4)
    assert [t.grad_norm for t in ours] == pytest.approx([t.grad_norm for t in theirs], rel=1e-3)


def test_the_ledger_of_a_winner() -> None:
    run = toy()
    main = run.ledger["main"]
    verdict, rollouts = verify(run, lr(0.5), lr(1.1), rule=Everything())
    assert run.ledger["verify"] == pytest.approx(30 * main / 8)
    adopt(rollouts, verdict)
    assert run.ledger["main"] == pytest.approx(main * 18 / 8)
    assert run.ledger["verify"] == pytest.approx(20 * main / 8)
    assert verdict.wasted == pytest.approx(run.ledger["verify"] + run.ledger["evaluate"])


@pytest.mark.parametrize("rule", [Everything(), Annealed()])
@pytest.mark.parametrize("count", [1, 3])
def test_no_more_is_thrown_away_than_said(tiny: TrainingRun, rule: Any, count: int) -> None:
    run = TrainingRun.from_config("tiny", SMALL)
    run.advance(10)
    verification = Verification(rule=rule, stopping=None)
    said = verification.thrown_away(run, count, 7)
    plan = draft(lr(0.9), lr(0.8), lr(1.1))
    rollouts = verification.rollouts(run, decision_steps=4, validation=run.evaluate())
    verdict = Verification(rule=rule, stopping=None, top_k=count).verify(
        rollouts, plan, horizon=40, steps=7
    )
    probes = (count + 1) * 2 * 16 * run._per_token / 3
    assert verdict.wasted <= said * (1 + 1e-9) <= verdict.wasted + probes * 1.01
    assert verification.cooldown_of(run) == 2  # 2 % of 120


# ── who is verified, and who wins ───────────────────────────────────────────────────────────────────────────────────────


def test_only_what_promises_enough_is_verified() -> None:
    plan = draft(lr(0.9), lr(0.8), lr(1.1), lr(0.7))  # −0.10, −0.09, −0.08, −0.07
    assert [c.score for c in Verification(top_k=2).chosen(plan)] == pytest.approx([-0.1, -0.09])
    assert len(Verification(top_k=9).chosen(plan)) == 4
    assert len(Verification(top_k=9, worth=0.085).chosen(plan)) == 2
    assert Verification(worth=math.inf).chosen(plan) == []
    assert Verification().chosen(draft((Intervention(), Intervention()))) == []
    verdict, _ = verify(toy(), rule=Everything())
    assert (fates(verdict), verdict.accepted) == (["control"], None)
    assert verdict.reason == "the draft ranks nothing before doing nothing"


def test_the_lowest_rank_wins_and_what_has_none_comes_last() -> None:
    verdict, _ = verify(toy(), lr(0.9), lr(1.1), lr(0.8), rule=Everything())
    assert (verdict.accepted, fates(verdict)) == (1, ["control", "accepted", "passed", "passed"])
    verdict, _ = verify(toy(), lr(0.9), lr(1.1), rule=Everything(ranks=False))
    assert verdict.accepted == 1
    verdict, _ = verify(toy(), lr(0.5), lr(1.5), rule=Risk())
    assert verdict.winner is not None
    assert verdict.winner.delta == min(branch.delta for branch in verdict.branches[1:])


def test_deltas_are_logarithms_against_the_control() -> None:
    verdict, _ = verify(toy(), lr(1.5), rule=Annealed())
    control, branch = verdict.branches
    assert branch.delta == math.log(branch.outcome.validation[-1] / control.outcome.validation[-1])
    assert branch.annealed_delta == math.log(branch.outcome.annealed / control.outcome.annealed)
    assert branch.paired is not None
    assert branch.paired.steps == len(branch.losses) == 10
    assert branch.losses[0] == control.losses[0]  # the loss of a step is that before its update


@pytest.mark.parametrize(
    ("low", "high", "fate"), [(-5.0, 5.0, "accepted"), (-5.0, -4.0, "rejected")]
)
def test_what_does_as_drafted_is_accepted(low: float, high: float, fate: str) -> None:
    verification = Verification(verify_steps=10, stopping=None)
    plan = draft(lr(1.5), forecasts=[forecast(low, high)])
    verdict = verification.verify(verification.rollouts(toy(), decision_steps=5), plan, horizon=20)
    assert fates(verdict)[1] == fate
    scale = 0.5**0.25
    assert verdict.branches[1].expected == pytest.approx(
        (scale * low, scale * (low + high) / 2, scale * high)
    )


# ── stopping early ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_planted_loser_is_stopped_and_its_other_steps_are_not_charged() -> None:
    run = toy(steps=200, environment={"divergence_loss": 1e9})
    loser = lr(1e3)
    verdict, _ = verify(run, loser, lr(0.9), rule=Everything(), steps=20, stopping=Losing())
    assert fates(verdict) == ["control", "stopped", "accepted"]
    assert verdict.branches[1].reason.startswith("stopped after ")
    stopped = len(verdict.branches[1].losses)
    assert stopped in (5, 10, 15)
    assert [b.outcome.steps for b in verdict.branches] == [20, stopped, 20]
    assert verdict.cost.steps == 40 + stopped
    assert run.ledger["verify"] == pytest.approx((40 + stopped) * run.flops_per_step)
    never, _ = verify(
        toy(environment={"divergence_loss": 1e9}),
        loser,
        rule=Everything(),
        steps=2,
        stopping=Losing(),
    )
    assert never.branches[1].outcome.steps == 2


def test_it_costs_nothing_to_ask_again() -> None:
    run = toy(environment={"divergence_loss": 1e9})
    verification = Verification(verify_steps=20, rule=Everything())
    rollouts, plan = verification.rollouts(run, decision_steps=4), draft(lr(1e3), lr(0.9))
    first = verification.verify(rollouts, plan, horizon=40)
    again = verification.verify(rollouts, plan, horizon=40)
    assert (again.cost.steps, again.cost.flops) == (0, 0)
    assert fates(again) == fates(first)
    assert [b.losses for b in again.branches] == [b.losses for b in first.branches]


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"verify_steps": 0}])
def test_counts_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        Verification(**wrong)  # type: ignore[arg-type]
