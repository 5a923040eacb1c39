"""`trainenv decode train-pairs`: train the small models of a configuration of pairs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from trainenv.cli.decode.options import add_pairs
from trainenv.cli.options import INTERRUPTED, Result, interruptible
from trainenv.types import UserError


def add_train_pairs(actions: Any) -> None:
    """Add the action."""
    add_pairs(
        actions,
        "train-pairs",
        train_pairs_command,
        "Train the small models of a configuration of pairs; resumable.",
    )


def train_pairs_command(args: argparse.Namespace) -> Result:
    """Train the models that are missing."""
    from trainenv.cli.progress import ProgressLine
    from trainenv.composition.own_models import TrainingProgress, train_models
    from trainenv.config.decoding import PairsConfig

    config = PairsConfig.load(args.pairs)
    steps = sum(model.steps for model in config.models.values())
    before = dict(zip(config.models, _sums(model.steps for model in config.models.values())))
    result: dict[str, Any] = {"command": "decode train-pairs", "folder": str(args.out)}
    if not config.models:
        raise UserError(
            f"expected models to train in {args.pairs}, found none; its pairs are loaded as they "
            "are: call trainenv decode trace"
        )
    with interruptible() as stop, ProgressLine("train-pairs", steps, quiet=args.json) as screen:

        def show(at: TrainingProgress) -> None:
            note = f"{at.model}: step {at.step} of {at.steps}"
            screen.update(before[at.model] + at.step, steps, note=note, line=note)

        try:
            folders = train_models(config, args.out, watch=show, stop=stop)
        except UserError:
            if not stop():
                raise
            screen.say("interrupted; resume with the same command")
            return {**result, "finished": False}, INTERRUPTED
        screen.say(f"{len(folders)} models in {args.out / 'models'}")
    models = {name: str(path) for name, path in folders.items()}
    return {**result, "finished": True, "models": models}, 0


def _sums(values: Iterable[int]) -> list[int]:
    """Return the sum of the values before each one."""
    return [0, *accumulate(values)]
