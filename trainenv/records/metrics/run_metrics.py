"""The metrics of one run, from its folder: what is there is read, what is torn or missing is noted and passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from trainenv.monitor.harm import Harm
from trainenv.records.metrics.decision_metrics import Decisions, decisions_of, judge
from trainenv.records.metrics.instability import (
    Cluster,
    HarmEvent,
    Instability,
    Recovery,
    Row,
    clusters,
    harm_events,
    instability,
    recovery,
)
from trainenv.records.telemetry_log import read_part
from trainenv.tools.json_lines import plain, read_lines
from trainenv.types import UserError

_COLUMNS = ["line", "purpose", "step", "loss", "probe_loss", "stressors"]
_VOCABULARIES = {"bytes": 256, "gpt2": 50257}  # a BPE has `corpus.vocab_size`

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What one run came to.

    Each is defined in the package's docstring; NaN where it could not be measured.

    Attributes:
        ended: how, in the words of `summary.json`; empty where the run has not ended.
        steps: optimizer steps of the line that was kept.
        taken: optimizer steps taken, rewound ones included.
        final_loss: nats per token.
        flops: by purpose; empty where the run has not ended.
        stressors: by name.
        decisions: None where the run took none.
        events: every instability event.
        notes: what was missing, in words.
    """

    ended: str
    steps: int
    taken: int
    final_loss: float
    log_final_loss: float
    perplexity: float
    instability: Instability
    recovery: Recovery
    flops: Mapping[str, float]
    total_flops: float
    wasted: float
    drafting: float
    stressors: Mapping[str, Cluster]
    decisions: Decisions | None
    events: tuple[HarmEvent, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As strict JSON values: what is no finite number is null."""
        values = plain(asdict(self))
        assert isinstance(values, dict)
        return values


def measure(
    folder: Path, *, harm: Harm | None = None, uniform_loss: float | None = None
) -> Metrics:
    """The metrics of the run in `folder`, whatever state it was left in.

    Args:
        folder: of one run, as `RunFolder` describes it.
        harm: what counts as harm; the defaults if left out.
        uniform_loss: loss of a uniform guess, nats, which a diverged run counts as; from the
            summary or the configuration if left out.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"expected the folder of a run at {folder}, found none; give one that `trainenv run --out` has made"
        )
    notes: list[str] = []
    summary = _object(folder / "summary.json", json.loads, notes.append)
    config = _object(folder / "config.yaml", yaml.safe_load, notes.append)
    rows = read_rows(folder, notes.append)
    events = harm_events(rows, harm)
    rate = instability(len(events), rows, harm)
    if rows and math.isnan(rate.per_100k):
        notes.append(
            "the clean probe was never measured: only losses that are no number are events, and there is no rate"
        )
    uniform = uniform_loss or _positive(summary.get("uniform_loss")) or _uniform_of(config)
    final = final_loss(summary, _validations(folder, notes.append), uniform, notes.append)
    flops = _flops(summary.get("flops"))
    total = sum(flops.values())
    decisions = decisions_of(folder, notes.append)
    return Metrics(
        ended=str(summary.get("ended", "")),
        steps=int(_positive(summary.get("step")) or (rows[-1].step if rows else 0)),
        taken=len(rows),
        final_loss=final,
        log_final_loss=math.log(final) if final > 0 else math.nan,
        perplexity=math.exp(final) if final < 700 else math.nan,
        instability=rate,
        recovery=recovery(events),
        flops=flops,
        total_flops=total if flops else math.nan,
        wasted=(flops.get("rewound", 0.0) + flops.get("verify", 0.0)) / total
        if total
        else math.nan,
        drafting=flops.get("plan", 0.0) / total if total else math.nan,
        stressors=clusters(rows, events),
        decisions=None
        if decisions is None
        else judge(decisions, steps=len(rows), flops=total if total else math.nan),
        events=tuple(events),
        notes=tuple(notes),
    )


def read_rows(folder: Path, note: Note) -> list[Row]:
    """The steps taken of purpose `main`, in the order they were written; a part that cannot be read is noted and passed over."""
    parts = []
    for path in sorted((folder / "telemetry").glob("part-*.parquet")):
        try:
            parts.append(read_part(path, _COLUMNS).to_pydict())
        except (OSError, pa.ArrowException, KeyError) as error:
            note(f"telemetry/{path.name} is passed over: {type(error).__name__}")
    if not parts:
        note("there is no telemetry: no step was taken that could be counted")
    return [
        Row(line, step, _nan(loss), _nan(probe), tuple(stressors or ()))
        for part in parts
        for line, purpose, step, loss, probe, stressors in zip(*(part[name] for name in _COLUMNS))
        if purpose == "main"
    ]


def final_loss(
    summary: Mapping[str, Any],
    validations: Sequence[Mapping[str, Any]],
    uniform: float | None,
    note: Note,
) -> float:
    """The final validation loss, nats per token: a uniform guess's where the run diverged or its last loss is no number.

    Args:
        summary: of the run; empty where it has not ended, and its last validation so far is taken.
        validations: its records, in order.
        uniform: loss of a uniform guess; None where it is not known.
        note: is told what is missing.
    """
    if not summary and not validations:
        note("there is no validation loss")
        return math.nan
    last = validations[-1].get("loss") if validations else None
    loss = _positive(summary.get("final_validation_loss", last) if summary else last)
    if summary.get("ended") != "diverged" and loss is not None:
        return loss
    if uniform is None:
        note(
            "the loss of a uniform guess, which this run counts as, is not known; give uniform_loss"
        )
    return math.nan if uniform is None else uniform


def _validations(folder: Path, note: Note) -> list[dict[str, Any]]:
    try:
        return [
            record for record in read_lines(folder / "validation.jsonl") if isinstance(record, dict)
        ]
    except (OSError, ValueError, RecursionError) as error:
        note(f"validation.jsonl is passed over: {type(error).__name__}")
        return []


def _object(path: Path, parse: Callable[[str], Any], note: Note) -> Mapping[str, Any]:
    """The mapping in a file, empty with a note where there is none."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        note(f"there is no {path.name}")
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        note(f"{path.name} is passed over: {type(error).__name__}")
        return {}
    if not isinstance(value, Mapping):
        note(f"{path.name} is passed over: expected an object, found {type(value).__name__}")
        return {}
    return value


def _uniform_of(config: Mapping[str, Any]) -> float | None:
    """Ln V of a configured run's vocabulary; None where the model was brought along."""
    corpus = config.get("corpus")
    if not isinstance(corpus, Mapping):
        return None
    size = _positive(_VOCABULARIES.get(str(corpus.get("tokenizer")), corpus.get("vocab_size")))
    return None if size is None else math.log(size)


def _flops(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {str(purpose): _positive(flops) or 0.0 for purpose, flops in values.items()}


def _positive(value: Any) -> float | None:
    """A finite number above 0, or None."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if known else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
