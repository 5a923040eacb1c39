"""The world model of training dynamics: forecasts what an intervention does to a run.

model = worldmodel.load_pretrained()
model.forecast(history, [Intervention(lr_scale=0.5), Intervention(clip="zclip")])

Everything heavy is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainenv.types import Rollout
    from worldmodel.files import load, load_pretrained, save
    from worldmodel.model import Model
    from worldmodel.online import OnlineModel

__all__ = ["Model", "OnlineModel", "Rollout", "load", "load_pretrained", "save"]

_LAZY = {
    "Model": "worldmodel.model",
    "OnlineModel": "worldmodel.online",
    "Rollout": "trainenv.types",
    "load": "worldmodel.files",
    "load_pretrained": "worldmodel.files",
    "save": "worldmodel.files",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'worldmodel' has no attribute {name!r}")
