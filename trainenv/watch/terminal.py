"""A frame of text that shows a run, for terminals of any width, also without colour or Unicode."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from trainenv.report.drawing import formatting
from trainenv.watch.run_reader import RunReader
from trainenv.watch.state import curves_of, facts_of
from trainenv.watch.story import story_of

_COLOURS = {
    "running": "bold green",
    "finished": "bold blue",
    "interrupted": "bold yellow",
    "killed": "bold red",
    "diverged": "bold red",
}
_STYLES = dict.fromkeys(("fired", "fault", "diverged", "non_finite"), "red")
_LEAST = 40  # narrowest frame, characters
_ROWS = 5  # lines of the loss chart
_EDGE = 9  # characters left of a chart
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = " .:|"
# Letters of our sentences that an ASCII terminal lacks.
_PLAIN = str.maketrans(
    {"×": "x", "−": "-", "–": "-", "·": "-", "“": '"', "”": '"', "…": "...", "→": "->"}
)

Series = Sequence[float | None]


def frame(reader: RunReader, console: Console) -> Text:
    """Draw a run as lines of text that fit into the console."""
    width = max(console.width, _LEAST)
    plain = not console.encoding.lower().startswith("utf")
    facts = facts_of(reader)
    curves = curves_of(reader)
    story = story_of(reader)
    lines = [
        _head(facts["name"], facts["state"], width),
        *_wrapped(facts["verdict"], width),
        _progress(facts["step"], facts["budget"], width, plain=plain),
        Text(),
        *_figures(facts["tiles"], width),
    ]
    for note in facts["notes"]:
        lines += _wrapped(note, width, "red")
    lines += [Text(), *_chart("loss", curves["smooth"], width, plain=plain)]
    lines += [
        _spark(name, curves[column], width, plain=plain)
        for name, column in (("index", "index"), ("LR", "lr"))
    ]
    if story["decisions"]:
        lines += [Text(), Text("decisions, newest first", "bold")]
        for one in story["decisions"][:4]:
            style = ""
            if one["accepted"]:
                style = "green"
            lines += _entry(one["step"], f"{one['number']}: {one['title']}", width, style)
    if story["events"]:
        lines += [Text(), Text("events, newest first", "bold")]
        for step, kind, words in story["events"][:4]:
            lines += _entry(step, words, width, _STYLES.get(kind, ""))
    if plain:
        lines = [_in_ascii(line) for line in lines]
    return Text("\n").join(lines)


def _head(name: str, state: str, width: int) -> Text:
    room = width - len(state) - 2
    return Text.assemble((_cut(name, room).ljust(room), "bold"), "  ", (state, _COLOURS[state]))


def _progress(step: int, budget: int | None, width: int, *, plain: bool) -> Text:
    """Draw the share of the budget that is spent as a bar."""
    if not budget:
        return Text()
    part = min(step / budget, 1.0)
    room = width - 6
    full = "█"
    empty = "░"
    if plain:
        full = "#"
        empty = "."
    done = round(part * room)
    return Text.assemble((full * done, "blue"), (empty * (room - done), "dim"), f"{part:6.0%}")


def _figures(tiles: Sequence[tuple[str, str, str]], width: int) -> list[Text]:
    """Write the key figures in columns: name and value."""
    pairs = [(name, value) for name, value, _ in tiles if name != "Step"]
    columns = max(width // 26, 1)
    lines = []
    for start in range(0, len(pairs), columns):
        line = Text()
        for name, value in pairs[start : start + columns]:
            line.append(f"{name.lower()} ", "dim")
            line.append(value.ljust(24 - len(name)), "bold")
        line.rstrip()
        lines.append(line)
    return lines


def _chart(name: str, values: Series, width: int, *, plain: bool) -> list[Text]:
    """Draw a curve in several lines, its limits at the left."""
    columns = _columns(values, width - _EDGE)
    known = [value for value in columns if value is not None]
    if not known:
        return [Text(f"{name}: nothing yet", "dim")]
    later = [value for value in columns[len(columns) // 10 :] if value is not None] or known
    low = min(known)
    high = max(later)
    levels = _levels(columns, low, high, _ROWS, plain=plain)
    labels = {0: formatting.number(high), _ROWS - 1: formatting.number(low), 1: name}
    return [
        Text.assemble((f"{labels.get(row, ''):>{_EDGE - 1}} ", "dim"), (line, "cyan"))
        for row, line in enumerate(levels)
    ]


def _spark(name: str, values: Series, width: int, *, plain: bool) -> Text:
    """Draw a curve in one line, with its last value."""
    columns = _columns(values, width - _EDGE - 9)
    known = [value for value in columns if value is not None]
    if not known:
        return Text()
    (line,) = _levels(columns, min(known), max(known), 1, plain=plain)
    last = formatting.number(known[-1], 2)
    if 0 < abs(known[-1]) < 0.1:
        last = formatting.rate(known[-1])
    return Text.assemble((f"{name:>{_EDGE - 1}} ", "dim"), (line, "cyan"), f" {last:>8}")


def _columns(values: Series, count: int) -> list[float | None]:
    """Return one value for each column: the last of each stretch."""
    if len(values) <= count:
        return list(values)
    return [values[(place + 1) * len(values) // count - 1] for place in range(count)]


def _levels(columns: Series, low: float, high: float, rows: int, *, plain: bool) -> list[str]:
    """Return the lines of a chart, from the top; what is higher fills its column."""
    blocks = _BLOCKS
    if plain:
        blocks = _ASCII_BLOCKS
    most = len(blocks) - 1
    span = (high - low) or 1.0
    heights = []
    for value in columns:
        height = 0
        if value is not None:
            height = 1 + round(min((value - low) / span, 1.0) * (rows * most - 1))
        heights.append(height)
    return [
        "".join(blocks[min(max(height - row * most, 0), most)] for height in heights)
        for row in reversed(range(rows))
    ]


def _entry(step: int, words: str, width: int, style: str) -> list[Text]:
    """Write an entry in at most two lines, its step at the left."""
    lines = _wrapped(words, width - 10, style)[:2]
    heads = [f"{formatting.whole(step):>8}  ", " " * 10]
    return [Text.assemble((head, "dim"), line) for head, line in zip(heads, lines)]


def _wrapped(words: str, width: int, style: str = "") -> list[Text]:
    clean = " ".join(_printable(words).split())
    return list(Text(clean, style).wrap(Console(width=width, color_system=None), width))


def _printable(text: str) -> str:
    """Return a text with blanks in place of control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _cut(text: str, width: int) -> str:
    clean = _printable(text)
    if len(clean) <= width:
        return clean
    return f"{clean[: width - 1]}…"


def _in_ascii(line: Text) -> Text:
    """Return a line without letters that an ASCII terminal lacks; colours stay where they fit."""
    text = line.plain.translate(_PLAIN).encode("ascii", "replace").decode()
    if len(text) == len(line.plain):
        return Text(text, spans=line.spans)
    return Text(text)
