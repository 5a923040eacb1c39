"""Drawing for reports: SVG, HTML and text that shows numbers and interventions to people.

`svg` and `page` make markup, `panels` and `intervals` the parts of figures and tables,
`downsampling` keeps figures small, and `formatting` writes numbers and interventions in words. Text
from files is escaped in `svg` and `page`.
"""

from trainenv.report.drawing.intervals import Interval, interval_head, interval_row
from trainenv.report.drawing.page import head, section, style, tiles
from trainenv.report.drawing.panels import Frame
from trainenv.report.drawing.svg import Scale, drawing, element, escaped

__all__ = [
    "Frame",
    "Interval",
    "Scale",
    "drawing",
    "element",
    "escaped",
    "head",
    "interval_head",
    "interval_row",
    "section",
    "style",
    "tiles",
]
