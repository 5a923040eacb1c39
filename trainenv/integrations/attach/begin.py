"""`begin`: the session of an attached run, from the parts that an adapter names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from trainenv.integrations.attach import processes
from trainenv.integrations.attach.data import Data
from trainenv.integrations.attach.held_out import HeldOut
from trainenv.integrations.attach.parts import Part
from trainenv.integrations.attach.session import Session
from trainenv.integrations.attach.settings import Choices
from trainenv.integrations.attach.stage import Trained
from trainenv.tools import rng
from trainenv.training.micro_batches import pass_size


def begin(
    choices: Choices,
    out: Path,
    *,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    parts: Mapping[str, Part],
    data: Data | None,
    lrs: Sequence[float],
    held_out: HeldOut,
    steps: int,
    seed: int,
    on_rewind: Callable[[int], None] = lambda step: None,
    from_folder: bool = False,
) -> Session:
    """Return a session, and print what it may cost.

    Args:
        choices: Choices of the user.
        out: Folder to record in. Each process but the first takes one next to it.
        model: Model.
        optimizers: Optimizers, at least one.
        parts: Everything that training changes, by name, but the data and the random generators.
        data: Training data by position; None for a run that is only watched.
        lrs: Scheduled learning rate of the first group for each step.
        held_out: Held-out data and their loss.
        steps: Number of steps that the framework will take.
        seed: Random seed of the data order after a reorder.
        on_rewind: Function that learns the step that the run has gone back to.
        from_folder: True to continue from the newest checkpoint in the folder.

    Raises:
        UserError: A part cannot be captured and restored, or a setting is out of range; or several
            processes train the model, and it is to be steered.
    """
    processes.check(model, steers=choices.steers)
    out = processes.own(out)
    size = None
    if data is not None:
        parts = {"data": data, **parts}
        size = data.accumulation * pass_size(data.sample())
    trained = Trained(
        model=model,
        optimizers=optimizers,
        parts=parts,
        data=data,
        lrs=lrs,
        held_out=held_out.within(steps, size),
        batch_size=size or 1.0,
        extra=choices.budget == "extra",
    )
    device = optimizers[0].param_groups[0]["params"][0].device
    with rng.unchanged(device):  # parts that are loaded may draw
        settings = choices.settings(steps=steps, lrs=lrs, seed=seed, name=out.name or "attached")
        session = Session(trained, settings, out, on_rewind=on_rewind, from_folder=from_folder)
    if processes.rank() == 0:
        print(f"trainenv: {session.statement}", file=sys.stderr)
    return session
