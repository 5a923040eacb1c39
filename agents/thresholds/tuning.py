"""A search on one task, recorded in a folder so that it can be interrupted and resumed.

| in the folder | holds |
|---|---|
| `tune.json` | the task and the method |
| `trials.jsonl` | the evaluations, appended one by one |
| `decoding.json` | the result, for the report |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainenv.agents.thresholds.contract import Trial, Tuned, tune
from trainenv.agents.thresholds.methods import METHODS, make
from trainenv.agents.thresholds.pictures import picture
from trainenv.agents.thresholds.plan import Plan
from trainenv.agents.thresholds.sources import Source
from trainenv.agents.thresholds.tasks import DecodingTask, split
from trainenv.report.decoding import DECODING
from trainenv.tools.atomic_files import write_json
from trainenv.tools.checks import choice, whole
from trainenv.tools.json_lines import append_line, number_or_nan, read_lines
from trainenv.types import UserError

DEFAULT = "ucb"
"""Method with the least regret in `benchmarks/decoding.py`."""
TRIALS = "trials.jsonl"
_CARD = "tune.json"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search for the settings of one task.

    Args:
        method: Name of the method, one of `METHODS`.
        seed: Random seed of the method, and of the split of the texts.
        plan: Budget, rule, allowed distance and greatest draft length.

    Raises:
        UserError: A name is unknown or a number is out of range.
    """

    method: str = DEFAULT
    seed: int = 0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        choice("method", self.method, METHODS)
        whole("seed", self.seed, least=0)

    def run(
        self,
        source: Source,
        folder: Path,
        *,
        progress: Callable[[int, float], None] = lambda *_: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Search, or resume the search in the folder, and return the result.

        Args:
            source: Trace and costs.
            folder: Folder of the search.
            progress: Function of the number of evaluations and the best score so far.
            stop: Function to call before each evaluation; True interrupts the search.

        Raises:
            UserError: The folder has another search, or no evaluation gave a finite score.
        """
        first, second = split(source.trace, self.seed)
        task = self.plan.task(source, first, second)
        folder.mkdir(parents=True, exist_ok=True)
        self._check_card(source, folder)
        known = [read_trial(row) for row in read_lines(folder / TRIALS)]
        scores = [trial.score for trial in known if math.isfinite(trial.score)]
        best = max(scores, default=-math.inf)

        def record(trial: Trial) -> None:
            nonlocal best
            append_line(folder / TRIALS, trial.to_json())
            best = max(best, trial.score)
            progress(len(problem.trials) + 1, best)

        problem = task.problem(self.plan.budget, known=known, record=record, stop=stop)
        found = tune(make(self.method, seed=self.seed), problem)
        finished = not stop() or len(found.trials) >= self.plan.budget
        result = self._result(source, task, found, finished)
        write_json(folder / DECODING, result)
        return result

    def _check_card(self, source: Source, folder: Path) -> None:
        """Write the task and the method, or check that the folder has the same search."""
        kept = ("budget", "rule", "allowed_distance", "k")
        plan = asdict(self.plan)
        card = {
            "method": self.method,
            "seed": self.seed,
            "pair": source.pair,
            "corpus": source.corpus,
            "origin": asdict(source.trace.origin),
            "costs": asdict(source.costs),
            **{name: plan[name] for name in kept},
        }
        path = folder / _CARD
        if not path.exists():
            write_json(path, card)
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(card))
        for name, value in wanted.items():
            if found.get(name) != value:
                raise UserError(
                    f"expected the search in {folder} to have {name} {value!r:.80}, found "
                    f"{found.get(name)!r:.80}; give another --out, or the same settings to resume"
                )

    def _result(
        self, source: Source, task: DecodingTask, found: Tuned, finished: bool
    ) -> dict[str, Any]:
        best = found.best
        held_out = task.evaluate(task.control(best.values, best.score))
        drafts = best.score >= 1
        settings = ", ".join(f"{name} {value:.3g}" for name, value in best.values.items())
        summary = (
            f"decode with the target alone: the best settings ({settings}) would be "
            f"{best.details['speedup']:.2f} × as fast"
        )
        if drafts:
            summary = (
                f"use {settings}: {held_out['speedup']:.2f} × as fast as the target alone on texts "
                f"that the search did not see, {best.details['speedup']:.2f} × on its own; "
                f"distance to the target {held_out['distance']:.4f}"
            )
        return {
            "finished": finished,
            "plan": {**asdict(self.plan), "seeds": 1},
            "method": self.method,
            "pair": source.pair,
            "corpus": source.corpus,
            "evaluations": len(found.trials),
            "best": best.to_json(),
            "drafts": drafts,
            "summary": summary,
            "held_out": held_out,
            "tasks": [picture(source, self.plan)],
            "methods": [],
            "rows": [],
        }


def read_trial(row: dict[str, Any]) -> Trial:
    """Return the trial of a line of the log."""
    return Trial(
        point=tuple(float(share) for share in row["point"]),
        values={name: float(value) for name, value in row["values"].items()},
        score=number_or_nan(row["score"]),
        details={name: float(value) for name, value in row["details"].items()},
    )
