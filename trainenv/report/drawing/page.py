"""The frame of a report: one HTML file with style, a small script and data; it loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from trainenv.report.drawing.svg import element, escaped
from trainenv.tools.version import VERSION


@cache
def style(*names: str) -> str:
    """Return the style sheets of these names, joined."""
    return "".join(_resource(f"{name}.css") for name in names)


@cache
def _resource(name: str) -> str:
    """Read a file of this package, from the sources or the wheel."""
    return (files("trainenv.report.drawing") / name).read_text(encoding="utf-8")


LOSSES = "Losses are in nats per token; lower is better."


def page(
    title: str, body: str, data: Mapping[str, Any] | None = None, *, note: str = LOSSES
) -> str:
    """Make a whole HTML document; a note on units is at its end.

    Its content policy allows only the script `pointer.js`, by hash, so that markup that came from a
    recorded file cannot run code.
    """
    script = _resource("pointer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    about = f"Written by trainenv {escaped(VERSION)}. {escaped(note)}"
    # Every "<" in the data is escaped, so that no text in it can end its element.
    held = json.dumps(data or {}, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escaped(title)}</title><style>{style('page', 'style', 'charts')}</style></head>"
        f'<body><main class="trainenv page">{body}<footer>{about}</footer></main>'
        f'<script type="application/json" id="steps">{held}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def head(kind: str, title: str, verdict: str) -> str:
    """Make the head of a report: its kind, its title and a verdict."""
    return element(
        "header",
        element("p", escaped(kind), class_="kind"),
        element("h1", escaped(title)),
        element("p", escaped(verdict), class_="verdict"),
    )


def tiles(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Make a row of key figures, each with a name, a value and a note."""
    parts = [
        element(
            "div",
            element("dt", escaped(name)),
            element("dd", escaped(value), f"<small>{escaped(note)}</small>"),
        )
        for name, value, note in numbers
    ]
    return element("dl", *parts, class_="tiles")


def section(title: str, *body: str, about: str = "", name: str = "") -> str:
    """Make a part of the report: a title, an explanation if `about` is given, and the body."""
    parts = [element("h2", escaped(title))]
    if about:
        parts.append(element("p", about, class_="about"))
    return element("section", *parts, *body, id=name or None)
