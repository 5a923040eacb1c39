"""Metrics of one run, from its folder; files that are torn or missing are noted and skipped."""

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
from trainenv.records.metrics.decision_metrics import Decisions, decisions_of, judge, share
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
from trainenv.tools.json_lines import number_or_nan, plain, read_lines
from trainenv.training.ledger import wasted_share
from trainenv.types import UserError

_COLUMNS = ["line", "purpose", "step", "loss", "probe_loss", "stressors"]
_VOCABULARIES = {"bytes": 256, "gpt2": 50257}  # a BPE has `corpus.vocab_size`
_LARGEST_EXPONENT = 700  # exp of more would overflow

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All metrics of one run; NaN where one could not be measured.

    The docstring of the package defines each.

    Attributes:
        ended: Reason of the end, as in `summary.json`; empty if the run has not ended.
        steps: Optimizer steps of the history.
        taken: Optimizer steps taken, rewound ones included.
        final_loss: Final validation loss, nats per token.
        log_final_loss: Natural logarithm of the final loss.
        perplexity: Exponential of the final loss.
        test_loss: Loss on the test part, nats per token; NaN if the run measured none.
        instability: Number and rate of instability events.
        recovery: Steps until events were over.
        flops: FLOPs by purpose; empty if the run has not ended.
        total_flops: Sum of all FLOPs.
        wasted: Share of FLOPs that were wasted.
        drafting: Share of FLOPs that drafts took.
        stressors: Events near each stressor, by name.
        decisions: Metrics of the decisions; None if the run took none.
        events: All instability events.
        notes: Sentences about what was missing.
    """

    ended: str
    steps: int
    taken: int
    final_loss: float
    log_final_loss: float
    perplexity: float
    test_loss: float
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
        """Return all fields as strict JSON values: non-finite numbers become null."""
        values = plain(asdict(self))
        assert isinstance(values, dict)
        return values


def measure(
    folder: Path, *, harm: Harm | None = None, uniform_loss: float | None = None
) -> Metrics:
    """Return the metrics of the run in `folder`, finished or not.

    Args:
        folder: Folder of one run, as `RunFolder` describes it.
        harm: Definition of harm; None for the default one.
        uniform_loss: Loss of a uniform guess, nats, with which a diverged run counts; None to take
            it from the summary or the configuration.

    Raises:
        UserError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"expected the folder of a run at {folder}, found none; give one that "
            "`trainenv run --out` has made"
        )
    notes: list[str] = []
    summary = _object(folder / "summary.json", json.loads, notes.append)
    config = _object(folder / "config.yaml", yaml.safe_load, notes.append)
    rows = read_rows(folder, notes.append)
    events = harm_events(rows, harm)
    rate = instability(len(events), rows, harm)
    if rows and math.isnan(rate.per_100k):
        notes.append(
            "the clean probe was never measured: only losses that are no number are events, "
            "and there is no rate"
        )
    uniform = uniform_loss or _positive(summary.get("uniform_loss")) or _uniform_of(config)
    final = final_loss(summary, _validations(folder, notes.append), uniform, notes.append)
    flops = _flops(summary.get("flops"))
    total = sum(flops.values())
    return Metrics(
        ended=str(summary.get("ended", "")),
        steps=_steps(summary, rows),
        taken=len(rows),
        final_loss=final,
        log_final_loss=math.log(final) if final > 0 else math.nan,
        perplexity=math.exp(final) if final < _LARGEST_EXPONENT else math.nan,
        test_loss=test_loss(summary, uniform),
        instability=rate,
        recovery=recovery(events),
        flops=flops,
        total_flops=total if flops else math.nan,
        wasted=wasted_share(flops),
        drafting=share(flops.get("plan", 0.0), total),
        stressors=clusters(rows, events),
        decisions=_decisions(folder, len(rows), total, notes.append),
        events=tuple(events),
        notes=tuple(notes),
    )


def _steps(summary: Mapping[str, Any], rows: Sequence[Row]) -> int:
    """Return the steps of the history: from the summary, else those recorded so far."""
    known = _positive(summary.get("step"))
    if known is not None:
        return int(known)
    if not rows:
        return 0
    return rows[-1].step


def _decisions(folder: Path, steps: int, total: float, note: Note) -> Decisions | None:
    """Return the metrics of the decisions in a folder; None if there are none."""
    decisions = decisions_of(folder, note)
    if decisions is None:
        return None
    return judge(decisions, steps=steps, flops=total or math.nan)


def read_rows(folder: Path, note: Note) -> list[Row]:
    """Return the steps taken of purpose `main`, in the order in which they were written.

    Args:
        folder: Folder of the run.
        note: Function that is called with a sentence for each part that cannot be read.
    """
    parts = []
    for path in sorted((folder / "telemetry").glob("part-*.parquet")):
        try:
            parts.append(read_part(path, _COLUMNS).to_pydict())
        except (OSError, pa.ArrowException, KeyError) as error:
            note(f"telemetry/{path.name} is skipped: {type(error).__name__}")
    if not parts:
        note("there is no telemetry: no step was taken that could be counted")
    return [
        Row(line, step, number_or_nan(loss), number_or_nan(probe), tuple(stressors or ()))
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
    """Return the final validation loss, nats per token.

    A run that diverged, or whose last loss is non-finite, has the loss of a uniform guess.

    Args:
        summary: Summary of the run; empty if it has not ended: then its last validation counts.
        validations: Records of its validations, in order.
        uniform: Loss of a uniform guess; None where it is not known.
        note: Function that is called with a sentence for what is missing.
    """
    if not summary and not validations:
        note("there is no validation loss")
        return math.nan
    last = None
    if validations:
        last = validations[-1].get("loss")
    if summary:
        last = summary.get("final_validation_loss", last)
    loss = _positive(last)
    if summary.get("ended") != "diverged" and loss is not None:
        return loss
    if uniform is None:
        note(
            "the loss of a uniform guess, which this run counts as, is not known; give uniform_loss"
        )
        return math.nan
    return uniform


def test_loss(summary: Mapping[str, Any], uniform: float | None) -> float:
    """Return the loss on the test part, nats per token; NaN for a run that measured none.

    As for the final loss, a run that diverged, or whose test loss is non-finite, has the loss of a
    uniform guess.

    Args:
        summary: Summary of the run; empty if it has not ended.
        uniform: Loss of a uniform guess; None where it is not known.
    """
    if "test_loss" not in summary:
        return math.nan
    loss = _positive(summary["test_loss"])
    if summary.get("ended") != "diverged" and loss is not None:
        return loss
    if uniform is None:
        return math.nan
    return uniform


def _validations(folder: Path, note: Note) -> list[dict[str, Any]]:
    try:
        return [
            record for record in read_lines(folder / "validation.jsonl") if isinstance(record, dict)
        ]
    except (OSError, ValueError, RecursionError) as error:
        note(f"validation.jsonl is skipped: {type(error).__name__}")
        return []


def _object(path: Path, parse: Callable[[str], Any], note: Note) -> Mapping[str, Any]:
    """Return the mapping in a file; empty, with a note, if there is none."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        note(f"there is no {path.name}")
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        note(f"{path.name} is skipped: {type(error).__name__}")
        return {}
    if not isinstance(value, Mapping):
        note(f"{path.name} is skipped: expected an object, found {type(value).__name__}")
        return {}
    return value


def _uniform_of(config: Mapping[str, Any]) -> float | None:
    """Return ln V of the configured vocabulary; None for the user's own model."""
    corpus = config.get("corpus")
    if not isinstance(corpus, Mapping):
        return None
    size = _positive(_VOCABULARIES.get(str(corpus.get("tokenizer")), corpus.get("vocab_size")))
    if size is None:
        return None
    return math.log(size)


def _flops(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {str(purpose): _positive(flops) or 0.0 for purpose, flops in values.items()}


def _positive(value: Any) -> float | None:
    """Return a finite number above 0 as a float; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    return None
