"""The world model of training dynamics: it forecasts what an intervention does to a run.

    model = worldmodel.load_pretrained()
    model.forecast(history, [Intervention(lr_scale=0.5), Intervention(clip="zclip")])
    model.path_values(history, paths)    # of the learning rate to the end of the run, [K, L]

A model has two parts: networks that forecast branches over a horizon, and a path model (`paths`)
that values whole paths of the learning rate. `values_paths` tells if a model has the second part.
`OnlineModel` learns from verified branches; `save` and `load` store a model in a folder. The
subpackages hold the data set it is built from, loss-curve forecasters, baselines, conformal
calibration and evaluation. Everything is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.types import Rollout
    from trainenv.worldmodel.model import Model
    from trainenv.worldmodel.online import OnlineModel
    from trainenv.worldmodel.serialization import load, load_pretrained, save

__all__ = ["Model", "OnlineModel", "Rollout", "load", "load_pretrained", "save"]

__getattr__ = lazy(
    __name__,
    {
        "Model": "trainenv.worldmodel.model",
        "OnlineModel": "trainenv.worldmodel.online",
        "Rollout": "trainenv.types",
        "load": "trainenv.worldmodel.serialization",
        "load_pretrained": "trainenv.worldmodel.serialization",
        "save": "trainenv.worldmodel.serialization",
    },
)


if __name__ == "worldmodel":  # in a checkout: one copy of every class
    from trainenv.tools.checkout import alias

    alias(__name__)
