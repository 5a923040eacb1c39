"""Writing of the HTML report of a run, a comparison, weightings, or decoding thresholds."""

from __future__ import annotations

from pathlib import Path

from trainenv.report.comparison.comparison_page import comparison_page
from trainenv.report.comparison.comparison_record import is_comparison, read_comparison
from trainenv.report.decoding import decoding_page, is_decoding, read_decoding
from trainenv.report.run.run_page import run_page
from trainenv.report.run.run_record import read_run
from trainenv.report.wmtp import is_wmtp, read_wmtp, wmtp_page
from trainenv.types import UserError


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Write the report of a run, a comparison, weightings or thresholds; return its path.

    Args:
        folder: Folder of the run, the comparison, or of `trainenv wmtp compare` or `trainenv
            decode`, finished or not.
        path: Path of the HTML file, `report.html` in the folder by default. Missing folders are
            made.

    Raises:
        UserError: The folder is none of these, or the file can't be written.
    """
    path = path or folder / "report.html"
    if is_wmtp(folder):
        text = wmtp_page(read_wmtp(folder))
    elif is_comparison(folder):
        text = comparison_page(read_comparison(folder))
    elif is_decoding(folder):
        text = decoding_page(read_decoding(folder))
    else:
        text = run_page(read_run(folder))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name that is no UTF-8 is written as the bytes that it has on the disk.
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(
            f"{path} must be a file to write the report to, found: {error.strerror}; "
            "give another --out"
        ) from None
    return path
