"""Report of a comparison of weightings as one HTML file that loads nothing.

    wmtp_page(read_wmtp(Path("runs/wmtp-quick")))

`wmtp_page` has the tables, `td_picture` the TD errors of the critic.
"""

from trainenv.report.wmtp.wmtp_page import is_wmtp, read_wmtp, sentence, wmtp_page

__all__ = ["is_wmtp", "read_wmtp", "sentence", "wmtp_page"]
