"""Clip policies: each makes a gradient safe before the optimizer uses it.

    clip = make("zclip", z_threshold=3.0)
    loss.backward()
    report = clip(model.parameters(), optimizer=optimizer)
    optimizer.step()

Each policy has its own file; `Clipper` keeps the state of a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainenv.clipping.adagc import AdaGC
from trainenv.clipping.arc import ARC
from trainenv.clipping.clipper import Clipper
from trainenv.clipping.gradient_stabilizer import GradientStabilizer
from trainenv.clipping.none import NoClip
from trainenv.clipping.skip_step import SkipStep
from trainenv.clipping.spam import SPAM
from trainenv.clipping.zclip import ZClip
from trainenv.tools.checks import choice, names
from trainenv.types import ClipPolicy

POLICIES: Mapping[str, type[ClipPolicy]] = {
    "none": NoClip,
    "zclip": ZClip,
    "arc": ARC,
    "spam": SPAM,
    "skip_step": SkipStep,
    "adagc": AdaGC,
    "gradient_stabilizer": GradientStabilizer,
}
NAMES: tuple[str, ...] = tuple(POLICIES)
PER_TENSOR = frozenset(n for n, policy in POLICIES.items() if getattr(policy, "per_tensor", False))
"""Names of the policies that treat each parameter apart."""

__all__ = [
    "ARC",
    "NAMES",
    "PER_TENSOR",
    "POLICIES",
    "SPAM",
    "AdaGC",
    "Clipper",
    "GradientStabilizer",
    "NoClip",
    "SkipStep",
    "ZClip",
    "make",
]


def make(name: str, **hyperparameters: Any) -> Clipper:
    """Make a fresh clipper with the policy of that name.

    Args:
        name: Name of the policy, one of `NAMES`.
        hyperparameters: Hyperparameters by name; the others keep their defaults.

    Raises:
        UserError: There is no such policy or hyperparameter (the error suggests the nearest one),
            or a value is out of range.
    """
    choice("clip policy", name, NAMES)
    policy: Callable[..., Any] = POLICIES[name]
    names(name, POLICIES[name], hyperparameters)
    return Clipper(policy(**hyperparameters), name=name)
