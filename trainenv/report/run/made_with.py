"""Model, data, configuration, versions and command of a run, each in a sentence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainenv.report.drawing import formatting
from trainenv.report.run.run_record import RunRecord

_ARCHITECTURES = {"gpt2": "GPT-2", "t5": "T5"}
_TEXTS = {"stdlib": "source code of Python's standard library", "text": "text"}
_UNITS = {"bytes": "bytes", "bpe": "tokens of a BPE", "gpt2": "tokens of GPT-2"}
_UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Made:
    """Origin of a run in words; a text is empty where nothing is known.

    Attributes:
        model: Architecture and size.
        data: Text, tokenizer and batch.
        configuration: Steering, and the settings that matter most.
        versions: Versions of packages, and the device.
        command: Command of the newest process, and when it began.
    """

    model: str
    data: str
    configuration: str
    versions: str
    command: str

    @classmethod
    def of(cls, record: RunRecord) -> Made:
        """Describe a run."""
        starts = [one for one in record.processes if one["kind"] == "start"]
        newest = starts[-1] if starts else {}
        return cls(
            model=_model(record.config, newest),
            data=_data(record.config),
            configuration=_configuration(record),
            versions=_versions(newest),
            command=_command(starts),
        )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _model(config: Mapping[str, Any], process: Mapping[str, Any]) -> str:
    model = _section(config, "model")
    parts = []
    if model:
        kind = str(model.get("architecture", "gpt2"))
        parts.append(_ARCHITECTURES.get(kind, kind))
    elif process.get("parameters"):
        parts.append("a model of your own")
    count = formatting.finite(process.get("parameters"))
    if count:
        parts.append(f"{_size(count)} parameters")
    for key, noun in (("width", "width"), ("layers", "layers"), ("context", "context")):
        if key in model:
            parts.append(f"{noun} {model[key]}")
    return formatting.sentence(", ".join(parts)) if parts else ""


def _size(count: float) -> str:
    for power, prefix in ((1e9, "billion"), (1e6, "million")):
        if count >= power / 10:
            return f"{count / power:.3g} {prefix}"
    return formatting.whole(count)


def _data(config: Mapping[str, Any]) -> str:
    corpus = _section(config, "corpus")
    if not corpus:
        return ""
    name = str(corpus.get("name", ""))
    text = _TEXTS.get(name, name)
    if corpus.get("path"):
        text += f" in {corpus['path']}"
    tokenizer = str(corpus.get("tokenizer", ""))
    text += f", as {_UNITS.get(tokenizer, tokenizer)}"
    if batch := config.get("batch_size"):
        text += f"; {batch} sequences a batch"
        if (more := config.get("accumulation")) and more != 1:
            text += f", {more} batches a step"
    return formatting.sentence(text)


def _configuration(record: RunRecord) -> str:
    config = record.config
    optimizer = _section(config, "optimizer")
    parts = [_steering(record)]
    if "lr" in optimizer:
        name = str(optimizer.get("name", "adamw"))
        parts.append(f"{name}, learning rate {formatting.rate(optimizer['lr'])}")
    schedule = _section(config, "schedule")
    if schedule:
        kind = schedule.get("kind", "cosine")
        parts.append(f"{kind} after {schedule.get('warmup', 0)} steps of warm-up")
    if clip := _section(config, "clip").get("policy"):
        parts.append(formatting.CLIPS.get(str(clip), str(clip)))
    for key in ("precision", "seed"):
        if key in config:
            parts.append(f"{key} {config[key]}")
    return formatting.sentence("; ".join(parts)) + " All keys: config.yaml in the run's folder."


def _steering(record: RunRecord) -> str:
    if record.steered_by:
        return f"steered by {record.steered_by}"
    if record.decisions:
        return "steered, by what is not recorded"
    return "left alone"


def _versions(process: Mapping[str, Any]) -> str:
    found = process.get("versions")
    if not isinstance(found, Mapping):
        return _UNKNOWN
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    return f"{text}; on {process.get('device', 'an unknown device')}"


def _command(starts: list[dict[str, Any]]) -> str:
    if not starts:
        return _UNKNOWN
    first, newest = starts[0], starts[-1]
    text = f"{first.get('command')} (began {_clock(first.get('time'))})"
    if len(starts) > 1:
        times = "once" if len(starts) == 2 else f"{len(starts) - 1} times"
        text += (
            f"; resumed {times}, last at step "
            f"{formatting.whole(newest.get('step'))} by {newest.get('command')}"
        )
    return text


def _clock(seconds: Any) -> str:
    known = formatting.finite(seconds)
    if known is None:
        return formatting.MISSING
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(known))
