"""The strongest sandbox that this machine allows.

Where there is no bubblewrap, or where user namespaces are forbidden, programs run with resource
limits alone: what needs namespaces is then left out of the cases.
"""

from __future__ import annotations

from trainenv.evaluation import Bubblewrap, Limits, RlimitsOnly, Sandbox
from trainenv.evaluation.sandbox import check_sandbox
from trainenv.types import UserError

LIMITS = Limits(wall_s=4, cpu_s=2, memory_mb=256)


def _works() -> bool:
    try:
        check_sandbox(Bubblewrap())
    except UserError:
        return False
    return True


ISOLATES = _works()


def sandbox(limits: Limits = LIMITS) -> Sandbox:
    if ISOLATES:
        return Bubblewrap(limits=limits)
    return RlimitsOnly(without_isolation=True, limits=limits)


def sandboxes() -> list[Sandbox]:
    """Every kind that works here."""
    weak = RlimitsOnly(without_isolation=True, limits=LIMITS)
    return [sandbox(), weak] if ISOLATES else [weak]
