"""`Ledger`: FLOPs spent, by purpose.

Spent compute stays spent: restoring a snapshot takes nothing off the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainenv.types import PURPOSES, Purpose, UserError, as_number


def wasted_share(flops: Mapping[str, float]) -> float:
    """Return the share of all FLOPs that rewound steps and discarded branches took.

    Args:
        flops: FLOPs by purpose.

    Returns:
        A number from 0 to 1; NaN if nothing was spent.
    """
    total = sum(flops.values())
    if not total:
        return math.nan
    return (flops.get("rewound", 0.0) + flops.get("verify", 0.0)) / total


class Ledger:
    """FLOPs spent so far, by purpose.

    - main: steps that the run kept
    - rewound: steps of the run that a rewind discarded
    - verify: steps of branches
    - plan: planning
    - evaluate: validation and probes
    - model: training of the world model
    """

    def __init__(self) -> None:
        self._flops: dict[Purpose, float] = dict.fromkeys(PURPOSES, 0.0)

    def charge(self, purpose: Purpose, flops: float) -> None:
        """Add FLOPs to a purpose."""
        if purpose not in self._flops:
            raise UserError(f"purpose must be one of {', '.join(PURPOSES)}, found {purpose!r}")
        self._flops[purpose] += as_number(flops, "a charge", least=0, unit="FLOPs")

    def move(self, source: Purpose, target: Purpose, flops: float) -> None:
        """Charge FLOPs to `target` instead of `source`."""
        moved = min(flops, self._flops[source])
        self._flops[source] -= moved
        self._flops[target] += moved

    def __getitem__(self, purpose: Purpose) -> float:
        return self._flops[purpose]

    @property
    def total(self) -> float:
        return sum(self._flops.values())

    def as_dict(self) -> dict[str, float]:
        """Return the FLOPs by purpose, in the order of `PURPOSES`."""
        return {str(purpose): flops for purpose, flops in self._flops.items()}

    def load(self, flops: dict[str, float]) -> None:
        """Take over what an earlier process has spent."""
        self._flops = {purpose: float(flops.get(purpose, 0.0)) for purpose in PURPOSES}

    def __repr__(self) -> str:
        spent = ", ".join(
            f"{purpose} {flops:.3g}" for purpose, flops in self._flops.items() if flops
        )
        return f"Ledger({spent or 'empty'})"
