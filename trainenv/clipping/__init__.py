"""Clip policies: how a gradient is made safe before the optimizer sees it.

    clip = make("zclip", z_threshold=3.0) report = clip(model.parameters(), optimizer=optimizer)
    # after backward, before optimizer.step()

One file a policy; `Clipper` adds the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from trainenv.clipping.arc import ARC
from trainenv.clipping.clipper import Clipper
from trainenv.clipping.none import NoClip
from trainenv.clipping.spam import SPAM
from trainenv.clipping.zclip import ZClip
from trainenv.tools.checks import choice
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

POLICIES: Mapping[str, type[NoClip] | type[ZClip] | type[ARC] | type[SPAM]] = {
    "none": NoClip,
    "zclip": ZClip,
    "arc": ARC,
    "spam": SPAM,
}
NAMES: tuple[str, ...] = tuple(POLICIES)

__all__ = ["ARC", "NAMES", "POLICIES", "SPAM", "Clipper", "NoClip", "ZClip", "make"]


def make(name: str, **hyperparameters: Any) -> Clipper:
    """A fresh clipper with the policy of that name; what is left out of its hyperparameters stays at the default.

    Raises:
        UserError: no such policy or hyperparameter (the nearest valid one is named), or a value out
            of range.
    """
    choice("clip policy", name, NAMES)
    policy: Callable[..., Any] = POLICIES[name]
    valid = [field.name for field in fields(POLICIES[name])]
    for wrong in hyperparameters:
        if wrong not in valid:
            raise UserError(
                f"{name} has no hyperparameter {wrong!r}{nearest(wrong, valid)}; it has: {', '.join(valid)}"
            )
    return Clipper(policy(**hyperparameters), name=name)
