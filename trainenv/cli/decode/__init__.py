"""`trainenv decode`: train model pairs, trace them, and find the thresholds that decode fastest.

One file an action.
"""

from __future__ import annotations

from typing import Any

from trainenv.cli.decode.distill import add_distill
from trainenv.cli.decode.evaluate import add_evaluate
from trainenv.cli.decode.recommend import add_recommend
from trainenv.cli.decode.trace import add_trace
from trainenv.cli.decode.train_pairs import add_train_pairs
from trainenv.cli.decode.tune import add_tune
from trainenv.cli.options import add_actions

__all__ = ["add_decode"]


def add_decode(commands: Any) -> None:
    """Add the command and its actions."""
    actions = add_actions(
        commands, "decode", "Find the thresholds of speculative decoding for model pairs."
    )
    add_train_pairs(actions)
    add_trace(actions)
    add_distill(actions)
    add_tune(actions)
    add_evaluate(actions)
    add_recommend(actions)
