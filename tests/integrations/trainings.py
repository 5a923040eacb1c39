"""Small trainings of other people, with and without us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import trainenv
from trainenv.agents.branching import Branching
from trainenv.integrations.attach.stage import Stage
from trainenv.records.run_folder import read_events
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import Branch, Candidate, Intervention, Measure, Plan, PlanningProblem
from trainenv.verification.verify import Verification

OFTEN = {
    "triggers": ("checkpoint",),
    "every": 8,
    "max_waste": 0.9,
    "verify_steps": 4,
    "horizon": 8,
    "patience": 50,
}


@dataclass(frozen=True)
class Always:
    """An accept rule that accepts every branch, or refuses every one."""

    accepts: bool
    measure: Measure = "horizon"

    def objection(self, branch: Branch, control: Branch, /) -> str:
        return "" if self.accepts else "always refused"

    def rank(self, branch: Branch, /) -> float:
        return branch.outcome.validation[-1]


@dataclass(frozen=True)
class OtherRates:
    """A planner that always proposes the same other learning rates.

    Args:
        factors: Factors on the learning rate, the best first.
    """

    factors: tuple[float, ...]

    def plan(self, problem: PlanningProblem, /) -> Plan:
        others = [Intervention(lr_scale=factor) for factor in self.factors]
        candidates = [
            Candidate(interventions=(one,), score=-1.0 / place)
            for place, one in enumerate(others, 1)
        ]
        candidates.append(Candidate(interventions=(Intervention(),), score=0.0))
        return Plan(planner="other-rates", candidates=tuple(candidates))


def trying(*, accepts: bool, factors: tuple[float, ...] = (4.0, 0.1)) -> Branching:
    """Return a loop that tries other rates at every checkpoint, and accepts or refuses them."""
    verification = Verification(
        top_k=2, verify_steps=4, rule=Always(accepts), worth=0.0, stopping=None
    )
    return Branching(planner=OtherRates(factors), verification=verification)


def kinds(folder: Path) -> list[str]:
    """Return the kinds of the recorded events, in order."""
    return [event["kind"] for event in read_events(folder)]


def leave_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let states be restored without one of their parts."""
    load = Stage.load

    def without(stage: Stage, state: Mapping[str, Any]) -> None:
        generators = stage.generators
        left = {name: value for name, value in state.items() if name != part}
        load(stage, {"generators": state["generators"], **left})
        if part == "generators":
            stage.generators = generators

    monkeypatch.setattr(Stage, "load", without)


def assert_shard_was_skipped(run: Any, folder: Path, *, steps: int, bad: range) -> None:
    """Assert that a run went back, left out a bad shard, lowered its rate and has all its steps."""
    assert "rewind" in kinds(folder)
    assert run.lr_scale < 1
    assert set(bad) <= set(run.flagged)
    telemetry = read_telemetry(folder, kept_only=True)
    assert telemetry["step"].tolist() == list(range(1, steps + 1))
    assert not set(bad) & set(telemetry["data_index"])


def all_equal(one: Any, other: Any) -> bool:
    """Tell if nested states are equal, tensors bit by bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(all_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(all_equal, one, other))
    return bool(one == other)


# ── a loop of one's own ───────────────────────────────────────────────────────────────────────────


class Sequences(Dataset[Tensor]):
    """Sequences that count modulo the vocabulary, from a random start in random strides."""

    def __init__(
        self, count: int, *, first: int = 0, length: int = 9, vocabulary: int = 32
    ) -> None:
        self._count = count
        self._first = first
        self._length = length
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._first + place)
        start, stride = torch.randint(1, 7, (2,), generator=generator).tolist()
        return (start + stride * torch.arange(self._length)) % self._vocabulary


class Small(nn.Module):
    """A language model with dropout and a running average in a buffer."""

    def __init__(self, vocabulary: int = 32, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.1)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.out(torch.relu(self.hidden(self.drop(hidden))))
        return out


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def rounded_loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, batch)


@dataclass(kw_only=True)
class OwnLoop:
    """A training in a loop of one's own.

    Args:
        accumulation: Batches of a step.
        several: True for two optimizers, each with a scheduler.
        rounded: True to compute in bf16.
        compiled: True for a compiled model.
        averaged: True to keep an average of the weights.
        examples: Number of training sequences.
        lr: Learning rate.
        data: Training data in place of the usual ones.
    """

    accumulation: int = 1
    several: bool = False
    rounded: bool = False
    compiled: bool = False
    averaged: bool = False
    examples: int = 103
    epochs: int = 2
    lr: float = 3e-3
    data: Any = None

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Small()
        self.kept_model = self.model
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizers: list[torch.optim.Optimizer]
        if self.several:
            self.optimizers = [
                torch.optim.SGD(matrices, lr=0.05, momentum=0.9),
                torch.optim.AdamW(rest, lr=self.lr),
            ]
        else:
            self.optimizers = [torch.optim.AdamW([*matrices, *rest], lr=self.lr)]
        if self.compiled:
            self.model = torch.compile(self.model, backend="eager")  # type: ignore[assignment]
        self.schedulers = [
            torch.optim.lr_scheduler.CosineAnnealingLR(one, 60) for one in self.optimizers
        ]
        self.average = torch.optim.swa_utils.AveragedModel(self.kept_model)
        data = Sequences(self.examples) if self.data is None else self.data
        self.loader = DataLoader(data, batch_size=4, shuffle=True)
        self.held_out = [torch.stack([Sequences(40, first=1000)[i] for i in range(8)])]
        self.loss = rounded_loss_of if self.rounded else loss_of
        self.losses: list[float] = []

    def plain(self) -> OwnLoop:
        """Train without us."""
        for _ in range(self.epochs):
            for place, batch in enumerate(self.loader, 1):
                loss = self.loss(self.model, batch)
                (loss / self.accumulation).backward()
                self.losses.append(loss.item())
                if place % self.accumulation == 0 or place == len(self.loader):
                    for optimizer in self.optimizers:
                        optimizer.step()
                    for scheduler in self.schedulers:
                        scheduler.step()
                    for optimizer in self.optimizers:
                        optimizer.zero_grad()
                    if self.averaged:
                        self.average.update_parameters(self.kept_model)
        return self

    def steered(self, out: Path, mode: str = "branching", **settings: Any) -> OwnLoop:
        """Train with us."""
        settings = {"loss": self.loss, **settings}
        also = [self.average] if self.averaged else []
        self.steer = trainenv.steer(
            self.model,
            self.optimizers,
            self.loader,
            self.schedulers,
            out=out,
            validation=self.held_out,
            mode=mode,
            epochs=self.epochs,
            accumulation=self.accumulation,
            also=also,
            **settings,
        )
        for _ in range(self.epochs):
            for batch in self.steer:
                loss = self.loss(self.model, batch)
                (loss / self.accumulation).backward()
                kept = self.steer.kept
                updated = self.steer.step(loss)
                if kept:
                    self.losses.append(loss.item())
                if self.averaged and updated:
                    self.average.update_parameters(self.kept_model)
        return self

    def state(self) -> dict[str, Any]:
        """Return everything that training has changed, and the kept losses."""
        return {
            "model": self.kept_model.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "schedulers": [one.state_dict() for one in self.schedulers],
            "average": self.average.state_dict(),
            "losses": self.losses,
            "generator": torch.get_rng_state(),
        }


def batches(count: int = 400, *, bad: range = range(0)) -> list[Tensor]:
    """Return batches of sequences in a fixed order; those in `bad` are of random tokens."""
    sequences = Sequences(4 * count, first=5000)
    made = []
    for place in range(count):
        batch = torch.stack([sequences[4 * place + row] for row in range(4)])
        if place in bad:
            generator = torch.Generator().manual_seed(place)
            batch = torch.randint(32, batch.shape, generator=generator)
        made.append(batch)
    return made


class InOrder(OwnLoop):
    """A training on a list of batches, whose learning rate warms up over 20 steps.

    Its rate may be too high by a factor from a step on.
    """

    def __init__(self, data: list[Tensor], *, lr: float, from_step: int = 0, factor: float = 1.0):
        super().__init__(data=data, lr=lr, epochs=1)
        self.loader = self.data

        def scheduled(step: int) -> float:
            return min(1.0, (step + 1) / 20) * (factor if step >= from_step else 1.0)

        self.schedulers = [
            torch.optim.lr_scheduler.LambdaLR(one, scheduled) for one in self.optimizers
        ]

    @property
    def final(self) -> float:
        """Held-out loss at the end."""
        self.kept_model.eval()
        with torch.no_grad():
            return loss_of(self.kept_model, self.held_out[0]).item()
