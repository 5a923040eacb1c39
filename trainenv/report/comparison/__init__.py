"""The report of a comparison: methods on the same scenarios and seeds with equal compute.

    comparison = read_comparison(Path("runs/compared"))
    comparison_page(comparison)  # HTML
    comparison_text(comparison)  # tables for a rich console

`comparison_record` reads the folder; `forest_plot` and `scenarios_table` draw the page's tables.
A comparison that still runs is reported as far as it is.
"""

from trainenv.report.comparison.comparison_page import comparison_page
from trainenv.report.comparison.comparison_record import (
    Comparison,
    is_comparison,
    read_comparison,
)
from trainenv.report.comparison.comparison_text import comparison_text

__all__ = [
    "Comparison",
    "comparison_page",
    "comparison_text",
    "is_comparison",
    "read_comparison",
]
