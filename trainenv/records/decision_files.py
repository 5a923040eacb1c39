"""Decisions of a run, read from `branches/*/decision.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainenv.tools.error_text import describe_error

NAME = "decision.json"


def read_decisions(
    folder: Path, note: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Return the decisions in a run's folder, by `number`; skip files that are torn or incomplete.

    Args:
        folder: Folder of the run.
        note: Function that is called with a sentence for each skipped file.
    """
    found = []
    for path in sorted(path for path in (folder / "branches").glob("*") if path.is_dir()):
        try:
            decision = json.loads((path / NAME).read_text(encoding="utf-8"))
            if not is_complete(decision):
                raise ValueError("expected number, step and branches")
        except FileNotFoundError:
            note(f"branches/{path.name} has no {NAME}: a decision that was never finished")
        except (OSError, ValueError, RecursionError) as error:  # damaged by a crash
            note(f"branches/{path.name}/{NAME} is skipped: {describe_error(error)}")
        else:
            found.append(decision)
    return sorted(found, key=lambda decision: int(decision["number"]))


def accepted_branch(decision: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the branch that changed the run; None if the decision changed nothing."""
    place = decision.get("accepted")
    if place is None:
        return None
    chosen = [branch for branch in decision["branches"] if branch.get("place") == place]
    if not chosen or chosen[0].get("control"):
        return None
    accepted: Mapping[str, Any] = chosen[0]
    return accepted


def is_complete(decision: Any) -> bool:
    """Tell if a value read from a file is a decision with number, step and branches."""
    if not isinstance(decision, dict) or not isinstance(decision.get("branches"), list):
        return False
    if not all(isinstance(branch, dict) for branch in decision["branches"]):
        return False
    return all(isinstance(decision.get(key), int) for key in ("number", "step"))
