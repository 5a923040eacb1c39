"""Numbers, interventions and reasons as text for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from trainenv.types import Intervention

CLIPS = {
    "none": "no clipping",
    "zclip": "ZClip",
    "arc": "ARC",
    "spam": "SPAM",
    "skip_step": "skip-step",
    "adagc": "AdaGC",
    "gradient_stabilizer": "GradientStabilizer",
}
TRIGGERS = {
    "start": "the run was about to start",
    "warmup": "the warm-up showed an unsuitable learning rate",
    "diverged": "the run had diverged",
    "harm": "harm was detected",
    "fired": "an alarm was raised",
    "regression": "the validation loss got worse",
    "checkpoint": "a checkpoint was due",
    "asked": "a decision was requested",
}
PURPOSES = {
    "main": "kept steps",
    "rewound": "rolled-back steps",
    "verify": "discarded branches",
    "plan": "planning",
    "evaluate": "validation",
    "model": "world model",
}
MISSING = "–"
UNCHANGED = "no intervention"
_PARTS = {
    "momentum_reset": "reset momentum",
    "data_reorder": "shuffle data",
    "skip_batch": "skip flagged data",
}


def trigger(decision: Mapping[str, Any]) -> str:
    """Describe the event that made a decision necessary."""
    kind = str(decision.get("why"))
    return TRIGGERS.get(kind, kind)


def reason(branch: Mapping[str, Any]) -> str:
    """Return the reason for the result of a branch.

    An error is only pointed at: it is described once, in the faults, for all branches that had it.
    """
    if branch.get("fate") == "failed" and (branch.get("outcome") or {}).get("error"):
        return "its error is among the faults"
    return str(branch.get("reason") or "")


def intervention(fields: Mapping[str, Any]) -> str:
    """Describe an intervention by the fields that differ from their default: “LR ×0.8, ZClip”."""
    parts = []
    for name, value in fields.items():
        if value is None or value == getattr(Intervention, name, object()):
            continue
        match name:
            case "lr_scale":
                parts.append(f"LR ×{_factor(value)}")
            case "weight_decay_scale":
                parts.append(f"weight decay ×{_factor(value)}")
            case "clip":
                parts.append(CLIPS.get(str(value), str(value)))
            case "momentum_reset" | "data_reorder" | "skip_batch":
                parts.append(_PARTS[name])
            case "emphasis":
                parts.append(f"{value} emphasis")
            case "pending" | "plan":
                pass
            case _:
                parts.append(f"{name} {value}")
    return ", ".join(parts) or UNCHANGED


def sequence(interventions: Sequence[Mapping[str, Any]]) -> str:
    """Describe the interventions of several decisions in a row.

    Repeated ones are counted; those at the end that do nothing are left out.
    """
    names = [intervention(fields) for fields in interventions]
    while len(names) > 1 and names[-1] == UNCHANGED:
        names.pop()
    runs = [_repeated(name, len(list(group))) for name, group in groupby(names)]
    return ", then ".join(runs) or UNCHANGED


def _repeated(name: str, count: int) -> str:
    if count == 1:
        return name
    return f"{name} ({count} times)"


def branches(decision: Mapping[str, Any]) -> list[str]:
    """Name the branches of a decision by their interventions.

    A control that was not trained with the others is the run as it was recorded.
    """
    names = [sequence(branch.get("interventions") or []) for branch in decision["branches"]]
    if recorded(decision):
        names[:1] = ["the run as recorded"]
    return names


def recorded(decision: Mapping[str, Any]) -> bool:
    """Tell if the control of a decision is the recorded run itself, not a branch."""
    return (decision.get("verification") or {}).get("control") == "recorded"


def finite(value: Any) -> float | None:
    """Return a number that can be drawn; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 3) -> str:
    """Write a number with `digits` decimals and a real minus sign; a dash for none."""
    known = finite(value)
    if known is None:
        return MISSING
    return _minus(f"{known:,.{digits}f}")


def whole(value: Any) -> str:
    """Write a whole number with separated thousands."""
    return number(value, 0)


def change(delta: Any, digits: int = 2) -> str:
    """Write a difference of ln loss as a change of the loss: −0.0042 is “−0.42 %”."""
    known = finite(delta)
    if known is None:
        return MISSING
    percent = 100 * math.expm1(min(known, 50.0))
    if abs(percent) >= 1000:
        return f"{percent:+.1e} %"
    text = f"{percent:+,.{digits}f}"
    if not float(text.replace(",", "")):
        return f"{0:.{digits}f} %"
    return _minus(f"{text} %")


def interval(low: Any, high: Any) -> str:
    """Write two differences of ln loss as an interval in percent."""
    if finite(low) is None or finite(high) is None:
        return MISSING
    return f"{change(low).removesuffix(' %')} to {change(high)}"


def share(value: Any) -> str:
    """Write a share in percent, with enough decimals that a small share does not look like 0."""
    known = finite(value)
    if known is None:
        return MISSING
    percent = 100 * known
    if 0 < percent < 0.001:
        return "< 0.001 %"
    digits = 1
    if 0 < percent < 0.1:
        digits = 3
    elif 0 < percent < 1:
        digits = 2
    text = f"{percent:.{digits}f}"
    return f"{text.removesuffix('.0')} %"


def flops(value: Any) -> str:
    """Write FLOPs with a prefix: “1.24 TFLOP”."""
    known = finite(value)
    if known is None:
        return MISSING
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if known >= 10**power:
            return f"{known / 10**power:.3g} {prefix}FLOP"
    return f"{known:.3g} FLOP"


def duration(seconds: Any) -> str:
    """Write seconds in the unit that a person would use."""
    known = finite(seconds)
    if known is None:
        return MISSING
    if known < 1:
        return f"{1000 * known:.3g} ms"
    if known < 90:
        return f"{known:.3g} s"
    if known < 5400:
        return f"{known / 60:.0f} min"
    return f"{known / 3600:.1f} h"


def rate(value: Any) -> str:
    """Write a learning rate, or another small positive number."""
    known = finite(value)
    if known is None:
        return MISSING
    return f"{known:.2g}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: “1 branch”, “no branches”, “3 branches”."""
    if count == 1:
        return f"1 {noun}"
    return f"{count or 'no'} {plural or f'{noun}s'}"


def sentence(text: Any) -> str:
    """Write text with a capital letter and a full stop."""
    words = str(text).strip()
    if words and not words.endswith((".", "!", "?")):
        words += "."
    return f"{words[:1].upper()}{words[1:]}"


def _factor(value: Any) -> str:
    known = finite(value)
    if known is None:
        return str(value)
    return f"{known:.3g}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
