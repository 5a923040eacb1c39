"""Loops of one's own that Accelerate has prepared, watched and steered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin
from torch.utils.data import DataLoader

import trainenv
from tests.integrations.trainings import (
    OFTEN,
    Sequences,
    Small,
    all_equal,
    assert_shard_was_skipped,
    batches,
    kinds,
    leave_out,
    loss_of,
    trying,
)
from trainenv.integrations import accelerated
from trainenv.integrations.attach.data import Data
from trainenv.types import UserError

VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "accumulation": {"accumulation": 3, "examples": 235},
    "bf16": {"precision": "bf16"},
}


class Augmented(Sequences):
    """Sequences with a random shift, drawn when one is fetched."""

    def __getitem__(self, place: int) -> torch.Tensor:
        return (super().__getitem__(place) + torch.randint(32, ())) % 32


@pytest.fixture(autouse=True)
def one_accelerator() -> Iterator[None]:
    """Forget the state that Accelerators share, after a test."""
    yield
    forget()


def forget() -> None:
    """Forget the state that Accelerators share."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Accelerated:
    """A loop of one's own that Accelerate has prepared.

    Args:
        accumulation: Batches of a step.
        precision: Mixed precision.
        examples: Number of training sequences.
        data: Training data in place of the usual ones.
        scheduled: Factor on the learning rate by step; None for a cosine.
    """

    def __init__(
        self,
        *,
        accumulation: int = 1,
        precision: str = "no",
        examples: int = 103,
        data: Any = None,
        lr: float = 3e-3,
        scheduled: Any = None,
        **loader: Any,
    ) -> None:
        forget()
        torch.manual_seed(0)
        self.accelerator = Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulation
        )
        model = Small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        if scheduled is None:
            scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        else:
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scheduled)
        self.epochs = 2 if data is None else 1
        data = Sequences(examples) if data is None else data
        loader = {"batch_size": 4, "shuffle": True, **loader}
        sequences = Sequences(40, first=1000)
        held_out: Any = torch.stack([sequences[i] for i in range(8)])
        self.model, self.optimizer, self.loader, self.held_out, self.scheduler = (
            self.accelerator.prepare(
                model,
                optimizer,
                DataLoader(data, **loader),
                DataLoader(held_out, batch_size=8),
                scheduler,
            )
        )
        self.losses: list[float] = []

    def plain(self) -> Accelerated:
        """Train without us."""
        for _ in range(self.epochs):
            for batch in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = loss_of(self.model, batch)
                    self.accelerator.backward(loss)
                    self.losses.append(loss.item())
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
        return self

    def steered(self, out: Path, mode: str = "branching", **settings: Any) -> Accelerated:
        """Train with us."""
        self.steer = trainenv.steer(
            self.model,
            self.optimizer,
            self.loader,
            self.scheduler,
            out=out,
            mode=mode,
            epochs=self.epochs,
            **{"validation": self.held_out, "loss": loss_of, **settings},
        )
        for _ in range(self.epochs):
            for batch in self.steer:
                with self.accelerator.accumulate(self.model):
                    loss = loss_of(self.model, batch)
                    self.accelerator.backward(loss)
                    if self.steer.kept:
                        self.losses.append(loss.item())
                    self.steer.step(loss)
        return self

    def refused(self, out: Path, **settings: Any) -> Accelerated:
        """Train with branches that are tried and refused."""
        self.steered(out, callback=trying(accepts=False), config={"branching": OFTEN}, **settings)
        assert "decision" in kinds(out)
        return self

    def state(self) -> dict[str, Any]:
        """Return everything that training has changed, and the kept losses."""
        gradients = self.accelerator.gradient_state
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "losses": self.losses,
            "passes": self.loader.iteration,
            "iterated": [gradients.in_dataloader, gradients.end_of_dataloader],
            "generator": torch.get_rng_state(),
        }

    @property
    def final(self) -> float:
        """Held-out loss at the end."""
        self.model.eval()
        with torch.no_grad():
            return loss_of(self.model, next(iter(self.held_out))).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_watching_nor_refused_branches_leave_a_trace(variant: str, tmp_path: Path) -> None:
    plain = Accelerated(**VARIANTS[variant]).plain().state()
    watched = Accelerated(**VARIANTS[variant]).steered(tmp_path / "watched", "watch")
    assert all_equal(plain["losses"], watched.state()["losses"])
    refused = Accelerated(**VARIANTS[variant]).refused(tmp_path / "run")
    assert all_equal(plain, refused.state())


def test_the_loop_computes_held_out_losses_where_no_function_does(tmp_path: Path) -> None:
    plain = Accelerated(accumulation=2).plain().state()
    loop = Accelerated(accumulation=2).refused(tmp_path / "run", loss=None)
    assert all_equal(plain, loop.state())


@pytest.mark.parametrize("part", ["model", "optimizer 0", "scheduler 0", "generators", "the count"])
def test_each_part_of_the_state_is_needed(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Accelerated(accumulation=3, examples=235).plain().state()
    leave_out(part, monkeypatch)
    if part == "the count":
        monkeypatch.setattr(accelerated.Prepared, "before_batch", lambda *a, **b: None)
    refused = Accelerated(accumulation=3, examples=235).refused(tmp_path / "run")
    assert not all_equal(plain, refused.state())


@pytest.mark.parametrize("ahead", [True, False])
def test_batches_are_fetched_ahead_as_accelerate_does(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Accelerated(data=Augmented(103)).plain().state()
    loop = Accelerated(data=Augmented(103))
    if not ahead:
        begun = Data.__init__
        monkeypatch.setattr(Data, "__init__", lambda *a, **b: begun(*a, **{**b, "ahead": False}))
    assert all_equal(plain, loop.refused(tmp_path / "run").state()) == ahead


# ── changes ───────────────────────────────────────────────────────────────────────────────────────


def test_rules_skip_a_bad_shard_and_lower_the_rate(tmp_path: Path) -> None:
    loop = Accelerated(
        data=batches(300, bad=range(250, 258)),
        lr=1e-2,
        scheduled=lambda step: min(1.0, (step + 1) / 20),
        batch_size=None,
        shuffle=False,
    )
    loop.steered(tmp_path / "run", "rules")
    assert_shard_was_skipped(loop.steer.run, tmp_path / "run", steps=300, bad=range(250, 254))


def test_a_rate_that_gets_too_high_is_lowered(tmp_path: Path) -> None:
    def training() -> Accelerated:
        return Accelerated(
            data=batches(300),
            lr=1e-2,
            scheduled=lambda step: min(1.0, (step + 1) / 20) * (100 if step >= 200 else 1),
            batch_size=None,
            shuffle=False,
        )

    plain = training().plain().final
    loop = training().steered(tmp_path / "run", max_waste=0.5)
    assert loop.steer.run.lr_scale < 1
    assert loop.final < plain


# ── what cannot be steered ────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_steered_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def refused(sentence: str, loop: Accelerated, **changed: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            loop.steered(tmp_path / "run", **changed)
        assert not (tmp_path / "run").exists()

    refused("that of the Accelerator, 3, found 2", Accelerated(accumulation=3), accumulation=2)
    refused("held-out data are needed", Accelerated(), validation=None)
    refused("num_workers=1", Accelerated(num_workers=1))
    loop = Accelerated()
    loop.loader = DataLoader(Sequences(8))
    refused("the loader must be prepared", loop)
    loop = Accelerated()
    loop.optimizer = loop.optimizer.optimizer
    refused("the optimizer must be prepared", loop)
    loop = Accelerated()
    loop.loader = loop.accelerator.skip_first_batches(loop.loader, 3)
    refused("skips 3", loop)
    loop = Accelerated()
    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    loop.accelerator.gradient_state.plugin_kwargs = plugin.to_kwargs()
    refused("sync_with_dataloader=False", loop)
    loop = Accelerated()
    loop.optimizer.accelerator_state._shared_state["distributed_type"] = "FSDP"
    refused("found FSDP", loop, mode="watch")
