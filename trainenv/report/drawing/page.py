"""The frame of a report: one HTML file that loads nothing, with its style, its small script and its data inside."""

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
    """The style sheets of these names, one after another."""
    return "".join(_beside(f"{name}.css") for name in names)


@cache
def _beside(name: str) -> str:
    """A file that lies beside this one, in the sources and in the wheel."""
    return (files("trainenv.report.drawing") / name).read_text(encoding="utf-8")


def page(title: str, body: str, data: Mapping[str, Any] | None = None) -> str:
    """A whole document.

    Only the script below may run in it, whatever a file has smuggled in: its hash is in the policy.
    """
    script = _beside("pointer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    # "<" never stands in the data as itself, so that nothing in it can end the element that it
    # stands in.
    about = (
        f"Written by trainenv {escaped(VERSION)}. Losses are in nats per token; lower is better."
    )
    held = json.dumps(data or {}, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escaped(title)}</title><style>{style('page', 'style', 'charts')}</style></head>"
        f'<body><main class="trainenv page">{body}<footer>{about}</footer></main>'
        f'<script type="application/json" id="steps">{held}</script><script>{script}</script></body></html>\n'
    )


def head(kind: str, title: str, verdict: str) -> str:
    """What it is, its name, and how it went."""
    return element(
        "header",
        element("p", escaped(kind), class_="kind"),
        element("h1", escaped(title)),
        element("p", escaped(verdict), class_="verdict"),
    )


def tiles(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Numbers that one wants to see first: what it is, the number, and a note below it."""
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
    """A part of the report with its title and, where that helps, a sentence of how to read it."""
    said = element("p", about, class_="about") if about else ""
    return element("section", element("h2", escaped(title)), said, *body, id=name or None)
