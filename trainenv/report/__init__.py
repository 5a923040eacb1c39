"""A report in one HTML file that loads nothing: of a run, or of a comparison."""

from __future__ import annotations

from pathlib import Path

from trainenv.report.comparison.comparison_page import comparison_page
from trainenv.report.comparison.comparison_record import is_comparison, read_comparison
from trainenv.report.run.run_page import run_page
from trainenv.report.run.run_record import read_run
from trainenv.types import UserError

__all__ = ["write_report"]


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Write the report of a run's or a comparison's folder, as far as it went; returns its path.

    Args:
        folder: what was recorded.
        path: of the HTML file; `report.html` in the folder by default. Folders above it are made.

    Raises:
        UserError: the folder is neither a run's nor a comparison's.
    """
    path = path or folder / "report.html"
    text = (
        comparison_page(read_comparison(folder))
        if is_comparison(folder)
        else run_page(read_run(folder))
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} must be a file to write the report to, found: {error.strerror}; give another --out"
        ) from None
    return path
