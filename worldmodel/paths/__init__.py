"""Model of whole paths of the learning rate: data, fit, value, and search.

    build_paths("paths", PathRecipe(groups=(156, 185, 84, 123)), make_run, fold)
    model = load_paths("paths")
    model.path_values(history, np.log([[0.5] * 30, [2.0] * 30]))     # against holding the rate

A path is ln of the factor on the learning rate at each decision to the end of the run. `collect`
trains runs under random paths and `fit` fits an ensemble to how they ended. `PathValueModel` values
paths from the state of a run, and `PathInference` makes it the model of a tree search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.worldmodel.paths.build import PathRecipe, build_paths
    from trainenv.worldmodel.paths.inference import PathInference
    from trainenv.worldmodel.paths.model import PathValueModel
    from trainenv.worldmodel.paths.serialization import load_paths, save_paths

__all__ = [
    "PathInference",
    "PathRecipe",
    "PathValueModel",
    "build_paths",
    "load_paths",
    "save_paths",
]

__getattr__ = lazy(
    __name__,
    {
        "PathInference": ".inference",
        "PathRecipe": ".build",
        "PathValueModel": ".model",
        "build_paths": ".build",
        "load_paths": ".serialization",
        "save_paths": ".serialization",
    },
)
