"""Colour for the marks ✓ and ✗ in tables of results."""

from __future__ import annotations

from typing import Any

MARKS = {"✓": "met", "✗": "missed"}


def on_page_content(html: str, /, page: Any, **_: Any) -> str:
    """Wrap each mark at the start of a cell."""
    for mark, name in MARKS.items():
        html = html.replace(f"<td>{mark} ", f'<td><span class="{name}">{mark}</span> ')
    return html
