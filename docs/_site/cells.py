"""Notebooks with their outputs, and scripts with `# %%` cells, as pages.

The tests execute both; the outputs of a notebook are those that are stored in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CELL = re.compile(r"^# %%(.*)$", re.MULTILINE)


def on_files(files: Files, /, config: MkDocsConfig) -> Files:
    """Add the pages, under `notebooks/`."""
    examples = Path(config.config_file_path).parent / "examples"
    for path in sorted((examples / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        content = "\n\n".join(part for cell in notebook["cells"] for part in _parts(cell))
        note = f"This page is the notebook `examples/notebooks/{path.name}`, with its outputs."
        files.append(_page(config, path.stem, content, note))
    for path in sorted(examples.glob("*.py")):
        code = path.read_text(encoding="utf-8")
        if CELL.search(code):
            note = f"This page is the script `examples/{path.name}`, cell by cell."
            files.append(_page(config, path.stem, "\n\n".join(_cells(code)), note))
    return files


def _page(config: MkDocsConfig, name: str, content: str, note: str) -> File:
    title, _, rest = content.partition("\n")
    return File.generated(config, f"notebooks/{name}.md", content=f"{title}\n\n{note}\n\n{rest}\n")


def _parts(cell: Mapping[str, Any]) -> Iterator[str]:
    """Make Markdown of a cell of a notebook and of its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/svg+xml" in data:
            svg = re.sub(r"\n\s*", " ", "".join(data["image/svg+xml"]))
            yield f'<div class="output">{svg}</div>'
        elif "image/png" in data:
            encoded = "".join(data["image/png"].split())
            yield f'<img class="output" alt="output" src="data:image/png;base64,{encoded}">'
        else:
            text = "".join(output.get("text", data.get("text/plain", "")))
            yield f"``` {{ .text .output }}\n{text.rstrip()}\n```"


def _cells(code: str) -> Iterator[str]:
    """Make Markdown of a script: comments of a cell `# %% [markdown]`, code of the others."""
    _, *parts = CELL.split(code)
    for kind, text in zip(parts[::2], parts[1::2]):
        if "[markdown]" in kind:
            yield re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)
        else:
            yield f"```python\n{text.strip()}\n```"
