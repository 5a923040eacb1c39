"""Verification: the best futures of a plan are trained for a few real steps before one is adopted.

- `verify`: `Verification`, its settings and the verification itself; `adopt` carries it out.
- `rules`: accept rules, which compare a branch with doing nothing.
- `early_stopping`: `Losing`, the sequential test that ends clear losers early.
- `record`: what is written to `branches/{step}/decision.json`.
- `replay`: `Replay`, which trains a recorded decision again and compares.

Each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.verification.early_stopping import Losing, paired
    from trainenv.verification.replay import Replay
    from trainenv.verification.verify import Verification, adopt, expected

__all__ = ["Losing", "Replay", "Verification", "adopt", "expected", "paired"]

__getattr__ = lazy(
    __name__,
    {
        "Losing": ".early_stopping",
        "Replay": ".replay",
        "Verification": ".verify",
        "adopt": ".verify",
        "expected": ".verify",
        "paired": ".early_stopping",
    },
)
