"""Numbers and interventions in words that a colleague understands without having read the code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from trainenv.types import Intervention

CLIPS = {"none": "no clipping", "zclip": "ZClip", "arc": "ARC", "spam": "SPAM"}
WHY = {
    "warmup": "the start showed a learning rate that does not suit",
    "diverged": "the run had diverged",
    "harm": "harm had begun",
    "fired": "the alarm fired",
    "regression": "validation got worse",
    "checkpoint": "a checkpoint was due",
    "asked": "it was asked for",
}
PURPOSES = {
    "main": "kept steps",
    "rewound": "rewound steps",
    "verify": "branches thrown away",
    "plan": "drafting",
    "evaluate": "validation",
    "model": "world model",
}
NOTHING = "–"


def reason(branch: Mapping[str, Any]) -> str:
    """The reason for what became of a branch; an error is named where the faults are, once for all branches that had it."""
    failed = branch.get("fate") == "failed" and (branch.get("outcome") or {}).get("error")
    return "its error is among the faults" if failed else str(branch.get("reason") or "")


def intervention(fields: Mapping[str, Any]) -> str:
    """One intervention, given by the fields that differ from doing nothing: “LR ×0.8, ZClip”."""
    said = []
    for name, value in fields.items():
        if value is None or value == getattr(Intervention, name, object()):
            continue
        match name:
            case "lr_scale" | "weight_decay_scale":
                said.append(f"{'LR' if name == 'lr_scale' else 'weight decay'} ×{_factor(value)}")
            case "clip":
                said.append(CLIPS.get(str(value), str(value)))
            case "momentum_reset" | "data_reorder" | "skip_batch":
                words = {
                    "momentum_reset": "reset momentum",
                    "data_reorder": "shuffle data",
                    "skip_batch": "skip flagged data",
                }
                said.append(words[name])
            case "pending":
                pass
            case _:
                said.append(f"{name} {value}")
    return ", ".join(said) or "do nothing"


def sequence(interventions: Sequence[Mapping[str, Any]]) -> str:
    """Interventions one decision after another; what is repeated is counted, what ends in doing nothing is cut short."""
    said = [intervention(fields) for fields in interventions]
    while len(said) > 1 and said[-1] == "do nothing":
        said.pop()
    runs = [(words, len(list(group))) for words, group in groupby(said)]
    return (
        ", then ".join(words if count == 1 else f"{words} ({count} times)" for words, count in runs)
        or "do nothing"
    )


def branches(decision: Mapping[str, Any]) -> list[str]:
    """What each branch of a decision did; a control that was not trained beside the others is what the run had done."""
    named = [sequence(branch.get("interventions") or []) for branch in decision["branches"]]
    return ["what was done", *named[1:]] if recorded(decision) else named


def recorded(decision: Mapping[str, Any]) -> bool:
    """Whether branches were measured against what the run had done since the step that they start from."""
    return (decision.get("verification") or {}).get("control") == "recorded"


def finite(value: Any) -> float | None:
    """A number that can be drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals, a dash for none; a real minus sign."""
    known = finite(value)
    return NOTHING if known is None else _minus(f"{known:,.{digits}f}")


def whole(value: Any) -> str:
    """A whole number, with thousands apart."""
    return number(value, 0)


def change(delta: Any, digits: int = 2) -> str:
    """A difference of ln loss as a change of the loss in percent: −0.0042 is “−0.42 %”."""
    known = finite(delta)
    if known is None:
        return NOTHING
    percent = 100 * math.expm1(min(known, 50.0))
    text = f"{percent:+,.{digits}f}" if abs(percent) < 1000 else f"{percent:+.1e}"
    return _minus(f"{text} %") if float(text.replace(",", "")) else f"{0:.{digits}f} %"


def interval(low: Any, high: Any) -> str:
    """Two differences of ln loss as an interval in percent."""
    if finite(low) is None or finite(high) is None:
        return NOTHING
    return f"{change(low).removesuffix(' %')} to {change(high)}"


def share(value: Any) -> str:
    """A share as a percentage, with as many decimals as it takes to say more than 0."""
    known = finite(value)
    if known is None:
        return NOTHING
    percent = 100 * known
    if 0 < percent < 0.001:
        return "< 0.001 %"
    text = f"{percent:.{3 if 0 < percent < 0.1 else 2 if 0 < percent < 1 else 1}f}"
    return f"{text.removesuffix('.0')} %"


def flops(value: Any) -> str:
    """FLOPs with a prefix: “1.24 TFLOP”."""
    known = finite(value)
    if known is None:
        return NOTHING
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if known >= 10**power:
            return f"{known / 10**power:.3g} {prefix}FLOP"
    return f"{known:.3g} FLOP"


def duration(seconds: Any) -> str:
    """Seconds as a person would say them."""
    known = finite(seconds)
    if known is None:
        return NOTHING
    if known < 1:
        return f"{1000 * known:.3g} ms"
    if known < 90:
        return f"{known:.3g} s"
    return f"{known / 60:.0f} min" if known < 5400 else f"{known / 3600:.1f} h"


def rate(value: Any) -> str:
    """A learning rate, or another small positive number."""
    known = finite(value)
    return NOTHING if known is None else f"{known:.2g}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """“1 branch”, “no branches”, “3 branches”."""
    many = plural or f"{noun}s"
    return f"1 {noun}" if count == 1 else f"{count if count else 'no'} {many}"


def sentence(text: Any) -> str:
    """Text with a capital and a full stop."""
    said = str(text).strip()
    return (
        f"{said[:1].upper()}{said[1:]}{'' if said.endswith(('.', '!', '?')) or not said else '.'}"
    )


def _factor(value: Any) -> str:
    known = finite(value)
    return str(value) if known is None else f"{known:.3g}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
