"""The decisions of a run, read back from `branches/*/decision.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NAME = "decision.json"


def read_decisions(
    folder: Path, note: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """The decisions in a run's folder, in the order of their `number`; files that are torn or say too little are passed over.

    Args:
        folder: of the run.
        note: told what is passed over, in words.
    """
    found = []
    for path in sorted(path for path in (folder / "branches").glob("*") if path.is_dir()):
        try:
            decision = json.loads((path / NAME).read_text(encoding="utf-8"))
            if not _says_enough(decision):
                raise ValueError("expected number, step and branches")
        except FileNotFoundError:
            note(f"branches/{path.name} has no {NAME}: a decision that was never finished")
        except (OSError, ValueError, RecursionError) as error:  # what a crash left of it
            note(
                f"branches/{path.name}/{NAME} is passed over: {type(error).__name__}: {error}"[:200]
            )
        else:
            found.append(decision)
    return sorted(found, key=lambda decision: int(decision["number"]))


def accepted_branch(decision: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The branch that changed the run; None where it went on as it was, on the steps of the control or not."""
    place = decision.get("accepted")
    found = (
        branch
        for branch in decision["branches"]
        if place is not None and branch.get("place") == place
    )
    branch: Mapping[str, Any] | None = next(found, None)
    return None if branch is None or branch.get("control") else branch


def _says_enough(decision: Any) -> bool:
    if not isinstance(decision, dict) or not isinstance(decision.get("branches"), list):
        return False
    if not all(isinstance(branch, dict) for branch in decision["branches"]):
        return False
    return all(isinstance(decision.get(key), int) for key in ("number", "step"))
