"""The report of a run.

    record = read_run(Path("runs/mine"))
    Facts.of(record).verdict  # the result in a sentence or two
    run_page(record)  # HTML

`run_record` reads the folder, `run_summary` computes the key figures, `run_report` shows the branch
tree as text. The other files draw one part of the page each. A run that still trains is reported as
far as it is.
"""

from __future__ import annotations

from trainenv.report.run.run_page import run_page
from trainenv.report.run.run_record import RunRecord, is_run, read_run
from trainenv.report.run.run_summary import Facts

__all__ = ["Facts", "RunRecord", "is_run", "read_run", "run_page"]
