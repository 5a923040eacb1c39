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

from trainenv.clipping.arc import ARC
from trainenv.clipping.clipper import Clipper
from trainenv.clipping.none import NoClip
from trainenv.clipping.spam import SPAM
from trainenv.clipping.zclip import ZClip
from trainenv.tools.checks import choice, names

POLICIES: Mapping[str, type[NoClip] | type[ZClip] | type[ARC] | type[SPAM]] = {
    "none": NoClip,
    "zclip": ZClip,
    "arc": ARC,
    "spam": SPAM,
}
NAMES: tuple[str, ...] = tuple(POLICIES)

__all__ = ["ARC", "NAMES", "POLICIES", "SPAM", "Clipper", "NoClip", "ZClip", "make"]


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
