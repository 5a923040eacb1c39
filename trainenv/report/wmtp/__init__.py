"""Report of a comparison of weightings as one HTML file.

write_wmtp_report(Path("runs/wmtp-quick"))  # → runs/wmtp-quick/report.html
"""

from trainenv.report.wmtp.wmtp_page import sentence, wmtp_page, write_wmtp_report

__all__ = ["sentence", "wmtp_page", "write_wmtp_report"]
