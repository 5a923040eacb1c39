"""Source files that a page links to, as pages: the site needs no host for the code.

A link to `../trainenv/loop.py` leads to a page with that file. If its text is the name of a class
or function in backticks, it leads to the line where that is defined. A link to a notebook leads to
its page.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)\s#]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".json": "json", ".js": "js"}
NOTEBOOK = ".ipynb"
LARGEST = 200_000  # bytes of a file that is shown


def on_files(files: Files, /, config: MkDocsConfig) -> Files:
    """Add a page for each linked file, and for the files of each linked folder."""
    root = _root(config)
    texts = [file.content_string for file in files.documentation_pages() if not _is_ours(file)]
    linked = {(root / match[2]).resolve() for text in texts for match in LINK.finditer(text)}
    for folder in [path for path in linked if path.is_dir()]:
        linked.update(path for path in folder.iterdir() if _is_shown(path))
    for path in sorted(path for path in linked if path.exists() and path.suffix != NOTEBOOK):
        name = path.relative_to(root)
        if path.is_dir():
            files.append(
                File.generated(config, f"source/{name}/index.md", content=_folder(name, path))
            )
        else:
            files.append(File.generated(config, f"source/{name}.md", content=_file(name, path)))
    return files


def on_page_markdown(markdown: str, /, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of the folder of pages to those pages."""
    if _is_ours(page.file):
        return markdown
    root = _root(config)
    up = "../" * page.file.src_uri.count("/")

    def place(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = (root / target).resolve()
        name = path.relative_to(root)
        if path.suffix == NOTEBOOK:
            return f"[{text}]({up}notebooks/{path.stem}.md)"
        if path.is_dir():
            return f"[{text}]({up}source/{name}/index.md)"
        return f"[{text}]({up}source/{name}.md{anchor or _line(text, path)})"

    return LINK.sub(place, markdown)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent.resolve()


def _is_ours(file: File) -> bool:
    return file.src_uri.startswith("source/")


def _is_shown(path: Path) -> bool:
    return path.is_file() and path.suffix in LANGUAGES and path.stat().st_size <= LARGEST


def _file(name: Path, path: Path) -> str:
    code = path.read_text(encoding="utf-8")
    language = LANGUAGES.get(path.suffix, "text")
    fence = "~" * 8
    head = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{name}`\n\n"
    return f"{head}{fence}{language}\n{code.rstrip()}\n{fence}\n"


def _folder(name: Path, path: Path) -> str:
    rows = "\n".join(
        f"- [{one.name}]({one.name}.md)" for one in sorted(path.iterdir()) if _is_shown(one)
    )
    return f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{name}`\n\n{rows}\n"


def _line(text: str, path: Path) -> str:
    """The anchor of the line that defines a class or function named by the text of a link."""
    name = re.fullmatch(r"`(\w+)`", text)
    if name is None or path.suffix != ".py":
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if re.match(rf"\s*(class|def) {name[1]}\b", line):
            return f"#__span-0-{number}"
    return ""
