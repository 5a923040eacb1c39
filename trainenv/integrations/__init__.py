"""Runs that somebody else's trainer trains: attached, watched and steered.

    trainenv.attach(trainer, out="runs/mine")              # a Hugging Face or TRL Trainer
    steer = trainenv.steer(model, optimizer, loader, out="runs/mine")  # a loop of your own
    trainenv.integrations.lightning.Steer(out="runs/mine")             # a callback of Lightning

- `attach` (the folder): what all adapters share. The run in place, its data, its program.
- `own_loop`, `huggingface`, `lightning`: one adapter each. A loop of your own may be one of
  Accelerate (`accelerated`).

Each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.integrations.huggingface import Attachment
    from trainenv.integrations.own_loop import Steer

__all__ = ["Attachment", "Steer"]

_named = lazy(__name__, {"Attachment": ".huggingface", "Steer": ".own_loop"})


def __getattr__(name: str) -> Any:
    if name == "lightning":
        return import_module(".lightning", __name__)
    return _named(name)
