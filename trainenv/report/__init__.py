"""Reports of runs and comparisons, as one HTML file that loads nothing and as text.

    write_report(Path("runs/mine"))  # a run or a comparison → runs/mine/report.html
    RunReport(Path("runs/mine")).tree()  # the branch tree of a run as text

`run` holds the report of a run, `comparison` that of a comparison, `drawing` the graphics of both.
"""

from trainenv.report.html_file import write_report
from trainenv.report.run.run_report import RunReport

__all__ = ["RunReport", "write_report"]
