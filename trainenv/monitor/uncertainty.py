"""The uncertainty index: three axes, each a z-score against its own history, in one number.

- *volatility*: the largest z of the training loss, the log gradient norm (the signal of ZClip),
  their strain (a moving average of both z-scores, for small jumps that last), and the loss on the
  clean probe.
- *entropy*: the mean |z| of attention entropy, activation entropy and the shortcut ratio.
- *disagreement*: the z of the disagreement between small online forecasters of the next loss.

A calm axis is 0 and not negative, so that it cannot outvote an alarm on another axis. The index is
the largest of three numbers:

- The weighted mean of the axes. The weight of a silent axis (not measured, or not often enough)
  goes to the others by Stouffer's rule: Σ w z over the axes that have a value, times √Σ w² over all
  axes, divided by √Σ w² over those axes. So its spread in a calm run stays the same. It rises by at
  most `_RISE` a step, so that one unusual step is not enough.
- The threshold × S / `shift_limit`, with S the cumulative sum of `shift.py` (Page 1954): lasting
  rises that are within the noise of a single step.
- The threshold, once one axis has been at its maximum for `consecutive` steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, SupportsFloat, get_args

from trainenv.config.presets import find, read_yaml
from trainenv.config.schema import UncertaintyConfig, validate
from trainenv.monitor.forecasters import Forecasters
from trainenv.monitor.shift import Shift, bounded_sum
from trainenv.monitor.zscore import BEYOND, Track
from trainenv.tools.checks import whole
from trainenv.types import Reading, Telemetry, UserError

_EVERY_STEP = ("loss", "grad_norm", "strain", "disagreement")
_INSIDE = ("attention_entropy", "activation_entropy", "shortcut_ratio")
_PROBED = ("probe_loss", *_INSIDE)
_Axis = Literal["volatility", "entropy", "disagreement"]
_AXES: tuple[_Axis, ...] = get_args(_Axis)
_AXIS_MOST = 6.0  # maximum of an axis, z
_RISE = 1.5  # most that the weighted mean rises a step, z
_STRAIN_RATE = 0.4
_STRAIN_LEAST = 0.2  # least spread of the strain, z: it is 0 for long while a loss falls fast
_PROBE_DECAY = 0.5  # low, so that a probe is compared with the few before it
_PROBE_WINDOW = 32
_PROBE_LEAST = 16
_PROBE_TAIL = 90.0
_STALE = 3  # age of the last probe, in usual gaps between probes, after which it is forgotten


class UncertaintyIndex:
    """The index of a run, updated with the telemetry of each step and saved with the run.

    It fires on `consecutive` readings over the threshold or on one over `single`, and is then
    silent for `refractory` steps. Both thresholds start `lenient` times higher and fall to their
    values over `lenient_steps`, or over `lenient_share` of the run if that is shorter. At any time
    it fires when an axis is at its maximum for `consecutive` steps, and at the first non-finite
    loss. A non-finite loss joins no history, and silences only the non-finite losses after it.

    Args:
        config: Thresholds and weights; None for those of `configs/uncertainty.yaml`.
        steps: Length of the run, in steps, if it is known.

    Raises:
        UserError: `steps` is not a whole number above 0.
    """

    def __init__(
        self, config: UncertaintyConfig | None = None, *, steps: int | None = None
    ) -> None:
        self.config = config or validate(
            UncertaintyConfig, read_yaml(find("uncertainty")), "uncertainty"
        )
        self._lenient_steps = float(self.config.lenient_steps)
        if steps is not None:
            share = self.config.lenient_share * whole("steps", steps, least=1)
            self._lenient_steps = min(self._lenient_steps, share)
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
        self._probed: dict[str, float] = {}  # last z of each measurement of the probe
        self._unprobed = 0  # steps since the last probe
        self._gap = 0  # steps between the last two probes; 0 if unknown
        self._strain = 0.0
        self._saturated = dict.fromkeys(_AXES, 0)  # consecutive steps of each axis at its maximum
        self._mean = 0.0  # weighted mean of the axes at the last step
        self._running = 0  # consecutive readings over the threshold
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
        """Take in one more step and return the reading.

        Args:
            telemetry: Telemetry of the step; None if loss, grad_norm and step are given by name.
            loss: Training loss of the step, nats: a number of Python or NumPy, or a tensor of one
                element. NaN and inf are non-finite losses.
            grad_norm: Norm of its gradient before clipping; None if it is unknown.
            step: Number of completed steps, this one included; None for one more than last time.
                After a rewind it is smaller.

        Raises:
            UserError: Neither or both of telemetry and loss are given, or one is not a number.
        """
        probed: dict[str, float] = {}
        if telemetry is not None:
            if not isinstance(telemetry, Telemetry):
                raise UserError(
                    f"update takes telemetry, found {telemetry!r:.80}; "
                    "pass the numbers of a step by name: loss=…"
                )
            if loss is not None or grad_norm is not None or step is not None:
                raise UserError(
                    "update takes telemetry, or loss, grad_norm and step by name, found both; "
                    "leave one out"
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
        if step is None:
            step = self._step + 1
        step = whole("step", step, least=0)
        norm = None if grad_norm is None else _number("grad_norm", grad_norm)
        return self._update(step, _number("loss", loss), norm, probed)

    def _update(
        self, step: int, loss: float, grad_norm: float | None, probed: Mapping[str, float]
    ) -> Reading:
        if step <= self._step:
            self._go_back(step)
        self._step = step
        probe_z = self._update_probe(probed)
        if not math.isfinite(loss):  # the gradient of such a step has no meaning either
            return self._read(
                step,
                volatility=_AXIS_MOST,
                entropy=self._entropy(),
                disagreement=None,
                non_finite=True,
            )
        loss_z = self._tracks["loss"].update(loss)
        gradient_z = 0.0
        if grad_norm is not None:
            gradient_z = self._tracks["grad_norm"].update(_log(grad_norm))
        spread = self._forecasters.update(self._tracks["loss"].entered)
        disagreement_z = 0.0
        if not math.isnan(spread):
            disagreement_z = self._tracks["disagreement"].update(_log(spread))
        volatility = None
        shift = 0.0
        if self._tracks["loss"].ready:
            strain = 0.0
            if grad_norm is None or math.isfinite(grad_norm):
                strain = self._update_strain(loss_z, gradient_z)
            volatility = _axis(max(loss_z, gradient_z, strain, self._probed.get("probe_loss", 0.0)))
            shift = self._shift.update(bounded_sum(loss_z, gradient_z), probe_z)
        disagreement = None
        if self._tracks["disagreement"].ready:
            disagreement = _axis(disagreement_z)
        return self._read(
            step,
            volatility=volatility,
            entropy=self._entropy(),
            disagreement=disagreement,
            shift=shift,
            rise=_RISE,
        )

    def _update_strain(self, loss: float, gradient: float) -> float:
        """Return the z of the moving average of the z-scores of loss and gradient norm."""
        self._strain += _STRAIN_RATE * (_axis(loss) + _axis(gradient) - self._strain)
        return self._tracks["strain"].update(self._strain)

    def _update_probe(self, probed: Mapping[str, float]) -> float | None:
        """Take in the measurements of a probe; forget the last probe once it is too old.

        Returns:
            The z of the probe loss; None if it was not measured at this step.
        """
        self._unprobed += 1
        if not probed:
            if self._gap and self._unprobed > _STALE * self._gap:
                self._probed.clear()
            return None
        for name, value in probed.items():
            self._probed[name] = self._tracks[name].update(value)
        self._gap = self._unprobed
        self._unprobed = 0
        if "probe_loss" not in probed:
            return None
        return self._probed["probe_loss"]

    def _entropy(self) -> float | None:
        """Return the entropy axis; None while it has no value."""
        scores = [
            abs(self._probed[name])
            for name in _INSIDE
            if name in self._probed and self._tracks[name].ready
        ]
        if not scores:
            return None
        return _axis(sum(scores) / len(scores))

    def _read(
        self,
        step: int,
        *,
        volatility: float | None,
        entropy: float | None,
        disagreement: float | None,
        shift: float = 0.0,
        rise: float = math.inf,
        non_finite: bool = False,
    ) -> Reading:
        """Compute a reading.

        Args:
            step: Number of completed steps.
            volatility: Axis; None if it is silent.
            entropy: Axis; None if it is silent.
            disagreement: Axis; None if it is silent.
            shift: Cumulative sum S over its limit.
            rise: Most that the weighted mean may rise.
            non_finite: True if the loss is not finite.
        """
        axes: dict[_Axis, float | None] = {
            "volatility": volatility,
            "entropy": entropy,
            "disagreement": disagreement,
        }
        leniency = self._leniency(step)
        threshold = self.config.threshold * leniency
        if non_finite:
            index = BEYOND
            fired = step > max(self._silent_until, self._lost_until)
            if fired:
                self._lost_until = step + self.config.refractory
        else:
            self._mean = min(self._weighted(axes), self._mean + rise)
            index = max(self._mean, self.config.threshold * shift)
            saturated = self._count_saturated(axes) >= self.config.consecutive
            if saturated:
                index = max(index, threshold)
            self._running += 1
            if index < threshold:
                self._running = 0
            alarmed = (
                saturated
                or self._running >= self.config.consecutive
                or index >= self.config.single * leniency
            )
            fired = alarmed and step > self._silent_until
            if fired:
                self._silent_until = step + self.config.refractory
                self._running = 0
                self._shift.reset()
        return Reading(
            volatility or 0.0, entropy or 0.0, disagreement or 0.0, index, threshold, fired
        )

    def _weighted(self, axes: Mapping[_Axis, float | None]) -> float:
        """Return the weighted mean of the axes; 0 if all are silent.

        With silent axes its spread in a calm run is the same as with all.
        """
        weights = self.config.weights
        heard = {name: axis for name, axis in axes.items() if axis is not None}
        width = math.hypot(*(weights[name] for name in heard))
        if not width:
            return 0.0
        mean = sum(weights[name] * axis for name, axis in heard.items()) / sum(weights.values())
        if len(heard) == len(axes):
            return mean
        return mean * math.hypot(*weights.values()) / width

    def _count_saturated(self, axes: Mapping[_Axis, float | None]) -> int:
        """Return the most consecutive steps that an axis has been at its maximum."""
        for name, axis in axes.items():
            self._saturated[name] += 1
            if axis is None or axis < _AXIS_MOST:
                self._saturated[name] = 0
        return max(self._saturated.values())

    def _leniency(self, step: int) -> float:
        """Return the factor on the thresholds: `lenient` at the start, falling to 1."""
        if step >= self._lenient_steps:
            return 1.0
        return self.config.lenient - (self.config.lenient - 1) * step / self._lenient_steps

    def _go_back(self, step: int) -> None:
        """Forget the alarms, exceedances and probes of the rewound steps."""
        self._running = 0
        self._mean = 0.0
        self._strain = 0.0
        self._saturated = dict.fromkeys(_AXES, 0)
        self._probed.clear()
        self._shift.reset()
        if step <= self._silent_until - self.config.refractory:
            self._silent_until = -1
        if step <= self._lost_until - self.config.refractory:
            self._lost_until = -1

    def state_dict(self) -> dict[str, Any]:
        """Return strict JSON values."""
        return {
            "tracks": {name: track.state_dict() for name, track in self._tracks.items()},
            "forecasters": self._forecasters.state_dict(),
            "probed": dict(self._probed),
            "counts": [self._strain, self._running, self._silent_until],
            "lately": {
                "step": self._step,
                "mean": self._mean,
                "lost_until": self._lost_until,
                "looks": [self._unprobed, self._gap],
                "saturated": dict(self._saturated),
                "shift": self._shift.state(),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state; a part that an earlier version did not save starts afresh."""
        for name, track in self._tracks.items():
            track.load_state_dict(state["tracks"][name])
        self._forecasters.load_state_dict(state["forecasters"])
        self._probed = dict(state["probed"])
        self._strain, self._running, self._silent_until = state["counts"]
        lately = state.get("lately") or UncertaintyIndex(self.config).state_dict()["lately"]
        self._step = lately["step"]
        self._mean = lately["mean"]
        self._lost_until = lately["lost_until"]
        self._unprobed, self._gap = lately["looks"]
        self._saturated = dict(lately["saturated"])
        self._shift.load_state(lately["shift"])


def _axis(z: float) -> float:
    return min(max(z, 0.0), _AXIS_MOST)


def _log(value: float) -> float:
    """Return the logarithm of a norm, at least ln 1e-30.

    A non-finite norm gives NaN, for which every track returns `BEYOND`.
    """
    if not math.isfinite(value):
        return math.nan
    return math.log(max(value, 1e-30))


def _number(name: str, value: SupportsFloat) -> float:
    if type(value) is float:
        return value
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(
            f"{name} must be a number or a tensor of one element, found {value!r:.80}; "
            "pass its mean"
        ) from None
