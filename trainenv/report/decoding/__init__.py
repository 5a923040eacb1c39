"""The report of thresholds of speculative decoding: one HTML file that loads nothing.

    record = read_decoding(Path("runs/decoding"))
    decoding_page(record)

`decoding_record` reads the folder, `pareto_picture` and `threshold_picture` draw the measured
settings of a task, `methods_table` the methods that choose them.
"""

from trainenv.report.decoding.decoding_page import decoding_page
from trainenv.report.decoding.decoding_record import (
    DECODING,
    DecodingRecord,
    is_decoding,
    read_decoding,
)

__all__ = ["DECODING", "DecodingRecord", "decoding_page", "is_decoding", "read_decoding"]
