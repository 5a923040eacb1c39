"""Pages of the API, one a package: every name in its `__all__`, so that none can be forgotten."""

from __future__ import annotations

from importlib import import_module

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = "trainenv"
PACKAGES = (
    *("agents", "planners", "worldmodel", "clipping", "wrappers", "envs", "integrations"),
    *("trackers", "records", "report", "compare", "decoding", "objectives", "evaluation", "types"),
)


def on_files(files: Files, /, config: MkDocsConfig) -> Files:
    """Add the pages."""
    names = [ROOT, *(f"{ROOT}.{package}" for package in PACKAGES)]
    for name in names:
        page = f"api/{name.rpartition('.')[2]}.md"
        files.append(File.generated(config, page, content=_page(name)))
    files.append(File.generated(config, "api/index.md", content=_index(names)))
    return files


def _page(name: str) -> str:
    module = import_module(name)
    packages = PACKAGES if name == ROOT else ()  # have pages of their own
    public = [one for one in sorted(module.__all__, key=str.lower) if one not in packages]
    parts = [f"# `{name}`", _summary(name), _example(name)]
    parts += [f"::: {name}.{one}" for one in public]
    return "\n\n".join(part for part in parts if part) + "\n"


def _index(names: list[str]) -> str:
    rows = [
        f"| [`{name}`]({name.rpartition('.')[2]}.md) | {_summary(name).replace('|', '/')} |"
        for name in names
    ]
    return "\n".join(
        (
            "# API",
            "",
            "Every public name, from the docstrings. A name that is not here is private and may "
            "change without notice.",
            "",
            "| package | |",
            "|---|---|",
            *rows,
            "",
        )
    )


def _summary(name: str) -> str:
    return (import_module(name).__doc__ or "").strip().partition("\n")[0]


def _example(name: str) -> str:
    """The rest of the docstring; its indented examples are code in Markdown already."""
    return (import_module(name).__doc__ or "").strip().partition("\n")[2].strip("\n")
