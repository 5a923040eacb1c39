"""The uncertainty index: three axes, each a z-score against its own history, weighted into one number that may fire.

- *volatility*: the largest z of the training loss, the log gradient norm (ZClip's signal), their strain (what the two have had
  of it over the last few steps: small jumps that last) and the loss on the clean probe;
- *entropy*: the mean |z| of attention entropy, activation entropy and the shortcut ratio inside the model;
- *disagreement*: the z of how far several small online forecasters of the next loss are apart.

An axis that points to calm is 0, not negative, so that it can't outvote an alarm on another.
"""

from __future__ import annotations

import math
from typing import Any

from trainenv.config import UncertaintyConfig, validate
from trainenv.monitor.forecasters import Forecasters
from trainenv.monitor.track import BEYOND, Track
from trainenv.types import Reading, Telemetry
from trainenv.yaml_files import find, read_yaml

_EVERY_STEP = ("loss", "grad_norm", "strain", "disagreement")
_INSIDE = ("attention_entropy", "activation_entropy", "shortcut_ratio")
_PROBED = ("probe_loss", *_INSIDE)
_AXIS_MOST = 6.0  # z beyond which an axis counts no further: to fire on a single step, another must say something too
_STRAIN_RATE = 0.4
_PROBE_DECAY = 0.5  # a look at the model is compared with the few before it
_PROBE_WINDOW = 32
_PROBE_LEAST = 16
_PROBE_TAIL = 90.0


class UncertaintyIndex:
    """Reads telemetry step by step. Its state is saved and restored with the run.

    It fires on `consecutive` readings over the threshold or on one over `single`, and is then silent for `refractory` steps.
    Both thresholds start `lenient` times higher and fall to their values over `lenient_steps`.

    Args:
        config: the numbers; those of `configs/uncertainty.yaml` if left out.
    """

    def __init__(self, config: UncertaintyConfig | None = None) -> None:
        self.config = config or validate(UncertaintyConfig, read_yaml(find("uncertainty")), "uncertainty")
        window, decay, least = self.config.window, self.config.decay, self.config.min_history
        self._tracks = {name: Track(window, decay, least) for name in _EVERY_STEP}
        self._tracks |= {
            name: Track(_PROBE_WINDOW, _PROBE_DECAY, _PROBE_LEAST, tail=_PROBE_TAIL, follow=True) for name in _PROBED
        }
        self._forecasters = Forecasters()
        self._probed: dict[str, float] = {}  # the newest z of what the probe could measure
        self._strain = 0.0
        self._running = 0
        self._silent_until = 0

    def update(self, telemetry: Telemetry) -> Reading:
        """The reading after one more step."""
        loss = self._tracks["loss"].update(telemetry.loss)
        gradient = self._tracks["grad_norm"].update(_log(telemetry.grad_norm))
        strain = self._strained(loss, gradient)
        spread = self._forecasters.update(telemetry.loss)
        disagreement = 0.0 if math.isnan(spread) else self._tracks["disagreement"].update(_log(spread))
        for name in _PROBED:
            value = getattr(telemetry, name)
            if not math.isnan(value):
                self._probed[name] = self._tracks[name].update(value)
        inside = [abs(self._probed[name]) for name in _INSIDE if name in self._probed]
        return self._read(
            telemetry.step,
            volatility=_axis(max(loss, gradient, strain, self._probed.get("probe_loss", 0.0))),
            entropy=_axis(sum(inside) / len(inside) if inside else 0.0),
            disagreement=_axis(disagreement),
            lost=not math.isfinite(telemetry.loss),
        )

    def _strained(self, loss: float, gradient: float) -> float:
        """The z of the moving average of what the loss and the gradient have of z, once they have any."""
        if not self._tracks["loss"].speaks:
            return 0.0
        self._strain += _STRAIN_RATE * (_axis(loss) + _axis(gradient) - self._strain)
        return self._tracks["strain"].update(self._strain)

    def _read(self, step: int, *, volatility: float, entropy: float, disagreement: float, lost: bool = False) -> Reading:
        """The reading of three axes; a loss that is not finite fires whatever the history and the leniency."""
        weights = self.config.weights
        index = (
            weights["volatility"] * volatility + weights["entropy"] * entropy + weights["disagreement"] * disagreement
        ) / sum(weights.values())
        index = BEYOND if lost else index
        leniency = self._leniency(step)
        threshold = self.config.threshold * leniency
        self._running = self._running + 1 if index >= threshold else 0
        alarmed = self._running >= self.config.consecutive or index >= self.config.single * leniency
        fired = alarmed and step > self._silent_until
        if fired:
            self._silent_until = step + self.config.refractory
            self._running = 0
        return Reading(volatility, entropy, disagreement, index, threshold, fired)

    def _leniency(self, step: int) -> float:
        """From `lenient` at the start down to 1."""
        if step >= self.config.lenient_steps:
            return 1.0
        return self.config.lenient - (self.config.lenient - 1) * step / self.config.lenient_steps

    def state_dict(self) -> dict[str, Any]:
        return {
            "tracks": {name: track.state_dict() for name, track in self._tracks.items()},
            "forecasters": self._forecasters.state_dict(),
            "probed": dict(self._probed),
            "counts": [self._strain, self._running, self._silent_until],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, track in self._tracks.items():
            track.load_state_dict(state["tracks"][name])
        self._forecasters.load_state_dict(state["forecasters"])
        self._probed = dict(state["probed"])
        self._strain, self._running, self._silent_until = state["counts"]


def _axis(z: float) -> float:
    return min(max(z, 0.0), _AXIS_MOST)


def _log(value: float) -> float:
    """The logarithm; of zero that of the smallest float, of what is not finite NaN, which every track reads as beyond."""
    return math.log(max(value, 1e-30)) if math.isfinite(value) else math.nan
