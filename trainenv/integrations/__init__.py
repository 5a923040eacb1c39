"""Runs that somebody else's trainer trains: attached, watched and steered.

    trainenv.attach(trainer, out="runs/mine")                   # a Hugging Face or TRL Trainer
    steer = trainenv.steer(model, optimizer, loader, out="runs/mine")       # a loop of your own

- `attach` (the folder): what all adapters share. The run in place, its data, its program.
- `own_loop`, `huggingface`: one adapter each.

Each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.integrations.huggingface import Attachment
    from trainenv.integrations.own_loop import Steer

__all__ = ["Attachment", "Steer"]

__getattr__ = lazy(__name__, {"Attachment": ".huggingface", "Steer": ".own_loop"})
