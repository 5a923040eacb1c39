"""The uncertainty index: three axes, each a z-score against its own history, weighted into one number that may fire.

- *volatility*: the largest z of the training loss, the log gradient norm (ZClip's signal), their strain (what the two have had
  of it over the last few steps: small jumps that last) and the loss on the clean probe;
- *entropy*: the mean |z| of attention entropy, activation entropy and the shortcut ratio inside the model;
- *disagreement*: the z of how far several small online forecasters of the next loss are apart.

An axis that points to calm is 0, not negative, so that it can't outvote an alarm on another. The
index is the largest of

- the weighted mean of the axes. One that can't speak (not measured, or not often enough yet) gives its weight to the others:
  Σ w z over those heard, times √Σ w² over all and over √Σ w² over those heard (Stouffer's rule), so
  that in a calm run it is as wide as ever. It rises by at most `_RISE` a step: one odd step is one
  odd step;
- the threshold × S / `shift_limit`, S the cumulative sum of `shift.py` (Page 1954): rises within a step's noise that last;
- the threshold, once one axis has been at its most for `consecutive` steps.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, Literal, SupportsFloat, get_args

from trainenv.config.presets import find, read_yaml
from trainenv.config.schema import UncertaintyConfig, validate
from trainenv.monitor.forecasters import Forecasters
from trainenv.monitor.shift import Shift, together
from trainenv.monitor.zscore import BEYOND, Track
from trainenv.types import Reading, Telemetry, UserError

_EVERY_STEP = ("loss", "grad_norm", "strain", "disagreement")
_INSIDE = ("attention_entropy", "activation_entropy", "shortcut_ratio")
_PROBED = ("probe_loss", *_INSIDE)
_Axis = Literal["volatility", "entropy", "disagreement"]
_AXES: tuple[_Axis, ...] = get_args(_Axis)
_AXIS_MOST = 6.0  # z beyond which an axis counts no further
_RISE = 1.5  # of the mean, a step
_STRAIN_RATE = 0.4
_STRAIN_LEAST = 0.2  # its least spread, in z: while a loss falls fast it is 0 for hundreds of steps
_PROBE_DECAY = 0.5  # a look at the model is compared with the few before it
_PROBE_WINDOW = 32
_PROBE_LEAST = 16
_PROBE_TAIL = 90.0
_STALE = 3  # times the usual gap between looks after which the last one says nothing of now


class UncertaintyIndex:
    """Reads telemetry step by step. Its state is saved and restored with the run.

    It fires on `consecutive` readings over the threshold or on one over `single`, and is then
    silent for `refractory` steps. Both thresholds start `lenient` times higher and fall to their
    values over `lenient_steps`, or over `lenient_share` of the run where that is less. An axis at
    its most for `consecutive` steps fires however early. So does a loss that is not finite, on its
    first step; it joins no history, and silences the losses after it that are not finite, but
    nothing else.

    Args:
        config: the numbers; those of `configs/uncertainty.yaml` if left out.
        steps: length of the run that is watched, in steps, where it is known.

    Raises:
        UserError: `steps` is no whole number above 0.
    """

    def __init__(
        self, config: UncertaintyConfig | None = None, *, steps: int | None = None
    ) -> None:
        self.config = config or validate(
            UncertaintyConfig, read_yaml(find("uncertainty")), "uncertainty"
        )
        self._lenient_steps = float(self.config.lenient_steps)
        if steps is not None:
            self._lenient_steps = min(
                self._lenient_steps, self.config.lenient_share * _whole("steps", steps, least=1)
            )
        window = self.config.window
        decay = self.config.decay
        least = self.config.min_history
        self._tracks = {name: Track(window, decay, least) for name in _EVERY_STEP}
        self._tracks["strain"] = Track(window, decay, least, finest=_STRAIN_LEAST)
        self._tracks |= {
            name: Track(_PROBE_WINDOW, _PROBE_DECAY, _PROBE_LEAST, tail=_PROBE_TAIL, follow=True)
            for name in _PROBED
        }
        self._forecasters = Forecasters()
        self._shift = Shift(
            drift=self.config.shift_drift, limit=self.config.shift_limit, memory=least
        )
        self._probed: dict[str, float] = {}  # the newest z of what the probe could measure
        # steps since the last look, and from it to the one before; 0: not known
        self._unlooked = 0
        self._gap = 0
        self._strain = 0.0
        self._saturated = dict.fromkeys(
            _AXES, 0
        )  # steps in a row that an axis has been at its most
        self._mean = 0.0  # of the axes, as it counted at the last step
        self._running = 0
        self._step = 0
        self._silent_until = self._lost_until = -1

    def update(
        self,
        telemetry: Telemetry | None = None,
        /,
        *,
        loss: SupportsFloat | None = None,
        grad_norm: SupportsFloat | None = None,
        step: int | None = None,
    ) -> Reading:
        """The reading after one more step.

        Args:
            telemetry: what the step measured, as a run has it; or, by name:
            loss: the step's training loss, nats; a number of Python, NumPy or a tensor of one
                element. NaN is a lost loss.
            grad_norm: norm of its gradient before clipping, where it is known.
            step: steps completed, this one included; one more than last time if left out. After a
                rewind it is smaller.

        Raises:
            UserError: neither or both of telemetry and loss are given, or one of them is no number.
        """
        probed: dict[str, float] = {}
        if telemetry is not None:
            if not isinstance(telemetry, Telemetry):
                raise UserError(
                    f"update takes telemetry, found {telemetry!r:.80}; pass a step's numbers by name: loss=…"
                )
            if loss is not None or grad_norm is not None or step is not None:
                raise UserError(
                    "update takes telemetry, or loss, grad_norm and step by name, found both; leave one out"
                )
            probed = {
                name: value
                for name in _PROBED
                if not math.isnan(value := _number(name, getattr(telemetry, name)))
            }
            step = telemetry.step
            loss = telemetry.loss
            grad_norm = telemetry.grad_norm
        elif loss is None:
            raise UserError(
                "update needs the step's telemetry or its loss, found neither; pass loss=…"
            )
        place = self._step + 1 if step is None else _whole("step", step, least=0)
        norm = None if grad_norm is None else _number("grad_norm", grad_norm)
        return self._update(place, _number("loss", loss), norm, probed)

    def _update(
        self, step: int, loss: float, grad_norm: float | None, probed: Mapping[str, float]
    ) -> Reading:
        if step <= self._step:
            self._go_back(step)
        self._step = step
        look = self._looked(probed)
        lost = not math.isfinite(loss)
        if lost:  # the gradient of such a step says nothing either
            return self._read(
                step, volatility=_AXIS_MOST, entropy=self._inside(), disagreement=None, lost=True
            )
        loss_z = self._tracks["loss"].update(loss)
        gradient_z = 0.0 if grad_norm is None else self._tracks["grad_norm"].update(_log(grad_norm))
        spread = self._forecasters.update(self._tracks["loss"].entered)
        apart = 0.0 if math.isnan(spread) else self._tracks["disagreement"].update(_log(spread))
        volatility = None
        shift = 0.0
        if self._tracks["loss"].speaks:
            odd = grad_norm is not None and not math.isfinite(grad_norm)
            strain = 0.0 if odd else self._strained(loss_z, gradient_z)
            volatility = _axis(max(loss_z, gradient_z, strain, self._probed.get("probe_loss", 0.0)))
            shift = self._shift.update(together(loss_z, gradient_z), look)
        return self._read(
            step,
            volatility=volatility,
            entropy=self._inside(),
            disagreement=_axis(apart) if self._tracks["disagreement"].speaks else None,
            shift=shift,
            rise=_RISE,
        )

    def _strained(self, loss: float, gradient: float) -> float:
        """The z of the moving average of what the loss and the gradient have of z."""
        self._strain += _STRAIN_RATE * (_axis(loss) + _axis(gradient) - self._strain)
        return self._tracks["strain"].update(self._strain)

    def _looked(self, probed: Mapping[str, float]) -> float | None:
        """Take in a look at the model, or that there was none; the z of the loss there, where it was measured."""
        self._unlooked += 1
        if not probed:
            if self._gap and self._unlooked > _STALE * self._gap:
                self._probed.clear()
            return None
        for name, value in probed.items():
            self._probed[name] = self._tracks[name].update(value)
        self._unlooked, self._gap = 0, self._unlooked
        return self._probed["probe_loss"] if "probe_loss" in probed else None

    def _inside(self) -> float | None:
        """The entropy axis; None while nothing inside the model can speak."""
        inside = [
            abs(self._probed[name])
            for name in _INSIDE
            if name in self._probed and self._tracks[name].speaks
        ]
        return _axis(sum(inside) / len(inside)) if inside else None

    def _read(
        self,
        step: int,
        *,
        volatility: float | None,
        entropy: float | None,
        disagreement: float | None,
        shift: float = 0.0,
        rise: float = math.inf,
        lost: bool = False,
    ) -> Reading:
        """The reading of three axes, None where one can't speak; `shift` is S over its limit, `rise` the most of the mean's."""
        axes: dict[_Axis, float | None] = {
            "volatility": volatility,
            "entropy": entropy,
            "disagreement": disagreement,
        }
        leniency = self._leniency(step)
        threshold = self.config.threshold * leniency
        if lost:
            index = BEYOND
            fired = step > max(self._silent_until, self._lost_until)
            self._lost_until = step + self.config.refractory if fired else self._lost_until
        else:
            self._mean = min(self._weighted(axes), self._mean + rise)
            index = max(self._mean, self.config.threshold * shift)
            stuck = self._stuck(axes)
            index = max(index, threshold) if stuck else index
            self._running = self._running + 1 if index >= threshold else 0
            alarmed = (
                stuck
                or self._running >= self.config.consecutive
                or index >= self.config.single * leniency
            )
            fired = alarmed and step > self._silent_until
            if fired:
                self._silent_until = step + self.config.refractory
                self._running = 0
                self._shift.begin_anew()
        return Reading(
            volatility or 0.0, entropy or 0.0, disagreement or 0.0, index, threshold, fired
        )

    def _weighted(self, axes: Mapping[_Axis, float | None]) -> float:
        """The weighted mean of the axes; with some silent as wide in a calm run as with all, and 0 where none can speak."""
        weights = self.config.weights
        heard = {name: axis for name, axis in axes.items() if axis is not None}
        width = math.hypot(*(weights[name] for name in heard))
        if not width:
            return 0.0
        mean = sum(weights[name] * axis for name, axis in heard.items()) / sum(weights.values())
        return mean if len(heard) == len(axes) else mean * math.hypot(*weights.values()) / width

    def _stuck(self, axes: Mapping[_Axis, float | None]) -> bool:
        """Whether an axis has been at its most for `consecutive` steps."""
        for name, axis in axes.items():
            self._saturated[name] = (
                self._saturated[name] + 1 if axis is not None and axis >= _AXIS_MOST else 0
            )
        return max(self._saturated.values()) >= self.config.consecutive

    def _leniency(self, step: int) -> float:
        """From `lenient` at the start down to 1."""
        if step >= self._lenient_steps:
            return 1.0
        return self.config.lenient - (self.config.lenient - 1) * step / self._lenient_steps

    def _go_back(self, step: int) -> None:
        """Forget alarms, exceedances and looks that belong to steps taken anew."""
        self._running = 0
        self._mean = 0.0
        self._strain = 0.0
        self._saturated = dict.fromkeys(_AXES, 0)
        self._probed.clear()
        self._shift.begin_anew()
        if step <= self._silent_until - self.config.refractory:
            self._silent_until = -1
        if step <= self._lost_until - self.config.refractory:
            self._lost_until = -1

    def state_dict(self) -> dict[str, Any]:
        return {
            "tracks": {name: track.state_dict() for name, track in self._tracks.items()},
            "forecasters": self._forecasters.state_dict(),
            "probed": dict(self._probed),
            "counts": [self._strain, self._running, self._silent_until],
            "lately": {
                "step": self._step,
                "mean": self._mean,
                "lost_until": self._lost_until,
                "looks": [self._unlooked, self._gap],
                "saturated": dict(self._saturated),
                "shift": self._shift.state(),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take on a state. What one of an earlier version does not have begins anew."""
        for name, track in self._tracks.items():
            track.load_state_dict(state["tracks"][name])
        self._forecasters.load_state_dict(state["forecasters"])
        self._probed = dict(state["probed"])
        self._strain, self._running, self._silent_until = state["counts"]
        lately = state.get("lately") or UncertaintyIndex(self.config).state_dict()["lately"]
        self._step = lately["step"]
        self._mean = lately["mean"]
        self._lost_until = lately["lost_until"]
        self._unlooked, self._gap = lately["looks"]
        self._saturated = dict(lately["saturated"])
        self._shift.resume(lately["shift"])


def _axis(z: float) -> float:
    return min(max(z, 0.0), _AXIS_MOST)


def _log(value: float) -> float:
    """The logarithm; of zero that of the smallest float, of what is not finite NaN, which every track reads as beyond."""
    return math.log(max(value, 1e-30)) if math.isfinite(value) else math.nan


def _number(name: str, value: SupportsFloat) -> float:
    if type(value) is float:
        return value
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(
            f"{name} must be a number or a tensor of one element, found {value!r:.80}; pass its mean"
        ) from None


def _whole(name: str, value: int, *, least: int) -> int:
    try:
        number = operator.index(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise UserError(
            f"{name} must be a whole number, at least {least}, found {value!r:.80}; count optimizer steps"
        )
    return number
