"""The documentation site: it builds without a warning, its links lead somewhere, and it loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.support.chromium import PATH, Page
from tests.test_docs import Page as Markdown
from tests.test_docs import tracked
from trainenv import __version__

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
MENU = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
LOADING = {
    *(("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "srcset"), ("link", "href")),
    *(("iframe", "src"), ("object", "data"), ("video", "src"), ("use", "href"), ("form", "action")),
}
# Relations of a link element for which a browser loads nothing.
NAMED_ONLY = {"canonical", "next", "prev"}


class Parsed(HTMLParser):
    """A page of the site: what it links to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = {"", "__skip"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if tag == "link" and found.get("rel") in NAMED_ONLY:
            return
        self.loads |= {value for name, value in found.items() if (tag, name) in LOADING}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip()
    return folder


def pages(site: Path) -> Iterator[tuple[str, Parsed]]:
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":  # its addresses start at the root of a server
            yield path.relative_to(site).as_posix(), parsed(path)


@cache
def parsed(path: Path) -> Parsed:
    return Parsed(path)


def test_every_link_leads_somewhere(site: Path) -> None:
    broken = []
    count = 0
    for name, page in pages(site):
        for target in page.links | page.loads:
            address = urlsplit(target)
            if address.scheme in ("https", "mailto", "data"):
                continue
            count += 1
            place = (site / name).parent / unquote(address.path) if address.path else site / name
            found = place.resolve()
            if address.scheme or not found.is_file() or not found.is_relative_to(site):
                broken.append(f"{name}: {target}")
            elif found.suffix == ".html" and unquote(address.fragment) not in parsed(found).anchors:
                broken.append(f"{name}: {target}: no such anchor")
    assert not broken
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    foreign = re.compile(r"^(\w+:)?//")
    found = [
        f"{name}: {target}"
        for name, page in pages(site)
        for target in page.loads
        if foreign.match(target)
    ]
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        loaded = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", text)
        found += [f"{sheet.name}: {target}" for target in loaded if foreign.match(target)]
    assert not found
    for path in site.rglob("*.html"):
        assert 'http-equiv="Content-Security-Policy"' in path.read_text(encoding="utf-8")


def test_every_public_name_has_its_place_in_the_api(site: Path) -> None:
    listed = {path.stem for path in (site / "api").glob("*.html")} - {"index"}
    assert {"trainenv", "agents", "planners", "worldmodel", "clipping", "types"} <= listed
    for package in listed:
        name = "trainenv" if package == "trainenv" else f"trainenv.{package}"
        module = import_module(name)
        anchors = parsed(site / "api" / f"{package}.html").anchors
        parts = set(module.__all__) - (listed if package == "trainenv" else set())
        assert parts
        assert not {one for one in parts if f"{name}.{one}" not in anchors}


def test_a_page_shows_the_pictures_of_the_real_run(site: Path) -> None:
    pictures = sorted(PICTURES.glob("*.svg"))
    assert sum(path.stat().st_size for path in pictures) < 200_000
    shown = parsed(site / "loop.html").loads | parsed(site / "index.html").loads
    assert {f"pictures/{path.name}" for path in pictures} <= shown
    for path in pictures:
        assert "prefers-color-scheme: dark" in path.read_text(encoding="utf-8")


def test_notebooks_are_shown_with_their_outputs(site: Path) -> None:
    text = (site / "notebooks" / "save_fork_compare.html").read_text(encoding="utf-8")
    assert "again from the snapshot: True" in text
    assert "<polyline" in text


def test_the_site_is_not_kept() -> None:
    made = yaml.safe_load(re.sub(r"!!python\S+", "", MENU))["site_dir"]
    assert f"{Path(made).parts[0]}/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    kept = [path.relative_to(ROOT).as_posix() for path in tracked()]
    assert not [path for path in kept if path.startswith((f"{made}/", "site/"))]


def test_every_page_is_in_the_navigation() -> None:
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in written if f": {name}\n" not in MENU} == set()


@pytest.mark.skipif(PATH is None, reason="needs the program chromium")
def test_the_site_in_a_browser(site: Path, tmp_path: Path) -> None:
    """Opened without a server: nothing foreign is asked for, and the search finds a page."""
    with Page(tmp_path / "profile") as page:
        page.open((site / "index.html").as_uri() + "?q=ZClip")
        page.wait("document.querySelectorAll('.md-search-result__item').length > 0")
        assert page.value("document.querySelector('picture img').naturalWidth") > 0
        assert (
            "clip"
            in page.value("document.querySelector('.md-search-result__list').innerText").lower()
        )
        assert {urlsplit(address).scheme for address in page.requests} <= {"file", "data", "about"}
        assert page.problems == []


# ── results ──────────────────────────────────────────────────────────────────────────────────────

RESULTS = Markdown(ROOT / "docs" / "results.md")
BOUNDS = {
    "at most": lambda value, bound: value <= bound,
    "at least": lambda value, bound: value >= bound,
    "below": lambda value, bound: value < bound,
    "above": lambda value, bound: value > bound,
}


def goals() -> Iterator[tuple[dict[str, str], str]]:
    """Rows of the results that have a goal, and the goal."""
    for table in re.findall(r"(?:^\|.*\n)+", RESULTS.text, re.MULTILINE):
        head, _, *rows = (
            [cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()
        )
        for row in rows:
            cells = dict(zip(head, row))
            if cells.get("goal"):
                yield cells, cells["goal"]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(" 000", "000"))


def test_every_goal_says_if_it_was_met() -> None:
    found = [goal for _, goal in goals()]
    assert len(found) > 50
    assert not [goal for goal in found if goal[:2] not in ("✓ ", "✗ ")]
    assert not [goal for goal in found if "missed" in goal]


def test_the_marks_are_what_the_numbers_say() -> None:
    """Goals in words that are a bound; an interval that is not wholly beyond 1 is not clear."""
    checked = 0
    for cells, goal in goals():
        words = re.fullmatch(r"([✓✗]) (at most|at least|below|above) ([-−+]?[\d.]+)", goal)
        measured = next(
            (
                cells[name]
                for name in ("measured", "change of the final loss, %", "ratio")
                if cells.get(name)
            ),
            None,
        )
        if words is None or measured is None:
            continue
        met = BOUNDS[words[2]](number(measured), number(words[3]))
        assert met == (words[1] == "✓"), cells
        checked += 1
    assert checked > 30


# ── metadata ─────────────────────────────────────────────────────────────────────────────────────


def test_changelog_and_citation_are_of_this_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+?),? ", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(template.read_text(encoding="utf-8"))
        assert template.stem == "config" or {"name", "description", "body"} <= set(form)
