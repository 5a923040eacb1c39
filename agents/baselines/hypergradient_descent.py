"""Hypergradient descent on the learning rate, in its form for Adam: Adam-HD.

Baydin et al. 2018 (arXiv:1703.04782): the learning rate follows the slope of the next loss,

    η_t = η_{t−1} − β ∂f/∂η,   ∂f/∂η = −⟨∇f(θ_t), u_{t−1}⟩

with u the direction that the optimizer subtracted last. The multiplicative form of the rule has no
scale:

    η_t = η_{t−1} (1 + β cos(∇f(θ_t), u_{t−1}))

It costs nothing, because the telemetry has the cosine.

Deviations: the rule moves the factor on the configured schedule; in the paper it replaces the
schedule. The monitor measures the cosine at a sample of the steps (`monitor.hypergradient.due`), so
each measured one counts for all steps until the next. The factor changes at the ends of blocks. The
paper's values of β, 1e-7 for Adam, belong to the additive form and depend on the size of the
gradient; the default here is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainenv.agents.baselines.rate_factor import change_rate
from trainenv.loop import Callback, CallbackResult
from trainenv.tools.checks import number
from trainenv.types import Run, Telemetry


@dataclass(kw_only=True)
class HypergradientDescent(Callback):
    """Callback that lets the learning rate follow its hypergradient.

    Args:
        beta: Relative change of the learning rate in one step for a cosine of 1.

    Raises:
        UserError: `beta` is not between 0 and 1.
    """

    beta: float = 0.02
    _cosine: float = field(default=0.0, init=False, repr=False)  # the newest measured one

    def __post_init__(self) -> None:
        self.beta = number("beta", self.beta, above=0, below=1)

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Multiply the learning rate by the factors of all steps of the block. See `Callback`."""
        ln_change = 0.0
        for telemetry in window:
            if math.isfinite(telemetry.hypergradient_cosine):
                self._cosine = telemetry.hypergradient_cosine
            ln_change += math.log1p(self.beta * self._cosine)
        if run.done or run.diverged:
            return CallbackResult()
        return CallbackResult(events=change_rate(run, run.lr_scale * math.exp(ln_change)))

    def state_dict(self) -> dict[str, Any]:
        """Return the newest cosine. See `Callback`."""
        return {"cosine": self._cosine}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take on the state that `state_dict` returned. See `Callback`."""
        if state:
            self._cosine = float(state["cosine"])
