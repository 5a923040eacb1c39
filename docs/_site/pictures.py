"""Draw the pictures of the page on the loop from a demo that was really trained.

    trainenv demo --out runs/demo
    python docs/_site/pictures.py runs/demo

Each picture is one SVG of its own, for screens and for phones, in light and dark colours.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from trainenv.report import RunReport
from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import bucketed, floats, smoothed
from trainenv.report.drawing.page import style
from trainenv.report.drawing.panels import LEFT, RIGHT, WIDTHS, Frame, axis, step_axis, title
from trainenv.report.drawing.svg import Scale, clipped, drawing, label, polyline
from trainenv.report.run.run_figure import index_figure, run_figure
from trainenv.report.run.run_record import RunRecord

PICTURES = Path(__file__).resolve().parent.parent / "pictures"
SIZES = ("middle", "narrow")
ALONE, STEERED = "left-alone", "branching"
EXTRA = ".alone{stroke:var(--warm);stroke-width:2}.steered{stroke:var(--run);stroke-width:2}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of the page on the loop.")
    parser.add_argument("demo", type=Path, help="folder of a demo")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    alone, steered = (RunReport(args.demo / name).record for name in (ALONE, STEERED))
    for size in SIZES:
        pictures = {
            "both": _both(alone, steered, WIDTHS[size]),
            "loop": _of_size(run_figure(steered), size),
            "index": _of_size(index_figure(steered), size),
        }
        for name, picture in pictures.items():
            path = args.out / f"{name}-{size}.svg"
            path.write_text(_alone_standing(picture) + "\n", encoding="utf-8")
            print(f"{path}: {path.stat().st_size / 1000:.1f} kB")


def _of_size(figure: str, size: str) -> str:
    """Take the drawing for one width of screen out of a figure of the report."""
    found = re.search(rf'<div class="only-{size}">(<svg.*?</svg>)</div>', figure, re.DOTALL)
    assert found is not None
    return found[1]


def _both(alone: RunRecord, steered: RunRecord, width: float) -> str:
    """Draw the smoothed losses of the two runs over their kept steps."""
    frame = Frame.of(width, max(alone.furthest, steered.furthest))
    lines = []
    for record in (alone, steered):
        kept = record.kept
        smooth = floats(smoothed(kept["loss"]))
        lines.append(bucketed(floats(kept["step"]), smooth, frame.points))
    late = np.concatenate([[y for x, y in zip(*one) if x > frame.steps.high / 10] for one in lines])
    scale = Scale(float(late.min()) - 0.1, float(np.quantile(late, 0.99)) + 0.15, 250, 30)
    drawn = [
        polyline([(frame.steps(x), scale(min(y, 9.0))) for x, y in zip(*one)], class_)
        for one, class_ in zip(lines, ("alone", "steered"))
    ]
    ends = [f"{one.summary['final_validation_loss']:.3f}" for one in (alone, steered)]
    return drawing(
        width,
        290,
        title(14, "Loss", "smoothed, nats per token"),
        axis(frame, scale, 5, lambda value: formatting.number(value, 1)),
        clipped(LEFT, 28, width - LEFT - RIGHT, 224, *drawn),
        label(width - RIGHT, 60, f"left alone: validation {ends[0]}", "warm", "end"),
        label(width - RIGHT, 78, f"steered: validation {ends[1]}", "run", "end"),
        step_axis(frame, 250),
        class_="chart steps",
        about="Smoothed training loss of two runs with one budget: left alone and steered",
    )


def _alone_standing(picture: str) -> str:
    """Put a drawing into a file of its own, with the styles that it needs."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)
    assert box is not None
    used = set(re.findall(r"[\w-]+", " ".join(re.findall(r'class="([^"]*)"', picture))))
    sheet = _rules(style("style", "charts"), used) + EXTRA.replace(".", ".trainenv svg .")
    text = ".trainenv svg .warm{fill:var(--warm)}.trainenv svg .run{fill:var(--run)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="trainenv" viewBox="0 0 {box[1]} {box[2]}">'
        f"<style>{sheet}{text}</style>{picture}</svg>"
    )


def _rules(sheet: str, used: set[str]) -> str:
    """Keep the colours, and the rules of elements and classes that a drawing has."""
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{\s*\.trainenv \{[^}]*\}\s*\}", sheet)
    colours = re.search(r"^\.trainenv \{(.*?)color:", sheet, re.MULTILINE | re.DOTALL)
    assert dark is not None
    assert colours is not None
    kept = [
        rule
        for rule in re.findall(r"^\.trainenv svg [^{]*\{[^}]*\}", sheet, re.MULTILINE)
        if set(re.findall(r"\.([\w-]+)", rule.partition("{")[0])) - {"trainenv"} <= used
    ]
    return f".trainenv{{{colours[1]}}}{dark[0]}{''.join(kept)}"


if __name__ == "__main__":
    main()
