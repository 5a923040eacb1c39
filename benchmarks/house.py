"""Measure how easily a reader finds the way in the product code, and how its sentences read.

    python benchmarks/house.py                    # the table
    python benchmarks/house.py --json             # one JSON object
    python benchmarks/house.py --list fragments   # the places of one row

Product code is trainenv/, agents/, planners/ and worldmodel/; a file that links reach twice counts
once. Layers are those of the contract of type `layers` in pyproject.toml; without one, climbs are
not measured. Definitions, row by row:

- flat: files directly in trainenv/, `__init__.py` included.
- climbs: pairs of modules of which a lower layer imports a higher one; lazy imports and imports for
  type checking count. A module that the contract does not name has no layer.
- circles: largest sets of modules that all import each other, directly or not; same imports.
- summaries, fragments, words: see `house_sentences`; in all docstrings, private ones included.
- conditionals: `a if b else c`, per 1000 lines of the files, blank lines and docstrings included.
- parallel: `a, b = x, y` as a share of all assignments without annotation; swaps are allowed.
- long: lines over 100 columns.
- stays, files, walk_climbs: see the walk of `house_code`. A stay is a stretch of it in one file; a
  climb is a change to a file of a higher layer.
- exported: names in `__all__` of the four packages, as a share of public names: functions and
  classes of modules, and methods of these classes, without a leading underscore.
- faces: folders whose `__init__.py` has no `__all__`.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import grimp
from house_code import PACKAGES, Code, Definition, Function, walk
from house_sentences import docstrings

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100
NO_LAYERS = "Climbs are not measured: pyproject.toml has no contract of type layers."


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        name: Name for `--list` and JSON.
        title: Title for people.
        goal: Goal of the plan, in words.
        places: One line for each case: file, line, text. None where the row is not measured.
        of: Number that the cases are a share of; 0 for a plain count.
        per: Size of the share: 100 for percent.
    """

    name: str
    title: str
    goal: str
    places: Sequence[str] | None
    of: int = 0
    per: int = 100

    @property
    def count(self) -> int | None:
        """The number of cases; None where it is not measured."""
        return None if self.places is None else len(self.places)

    @property
    def figure(self) -> float | None:
        """The count, or the share."""
        if self.count is None or not self.of:
            return self.count
        return round(self.per * self.count / self.of, 1)

    def values(self) -> dict[str, float | str | None]:
        """Return the row for JSON."""
        of = self.of or None
        return {"figure": self.figure, "count": self.count, "of": of, "goal": self.goal}

    def __str__(self) -> str:
        if self.count is None:
            return "not measured"
        if not self.of:
            return str(self.count)
        unit = " %" if self.per == 100 else ""
        return f"{self.figure}{unit} ({self.count} of {self.of})"


def measure(code: Code) -> list[Row]:
    """Return the rows of the table."""
    return [*_imports(code), *_sentences(code), *_statements(code), *_walk(code), *_names(code)]


def _imports(code: Code) -> Iterator[Row]:
    flat = [f"{module.path}:1" for module in code.modules.values() if module.folder == "trainenv"]
    yield Row(name="flat", title="modules flat in the root of trainenv", goal="≤ 5", places=flat)
    edges = _edges(code)
    climbing = [(edge, line) for edge, line in sorted(edges.items()) if code.climbs(*edge)]
    climbs = [f"{here}:{line} imports {there}" for (here, there), line in climbing]
    known = climbs if code.layers else None
    yield Row(name="climbs", title="imports that climb", goal="0", places=known)
    circles = [" ↔ ".join(circle) for circle in _circles(edges)]
    title = "circles of imports (lazy ones counted)"
    yield Row(name="circles", title=title, goal="0", places=circles)


def _edges(code: Code) -> dict[tuple[str, str], int]:
    """Return the line of each import, by the paths of both files."""
    sys.path.insert(0, str(code.root))  # where grimp looks for the packages
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    edges: dict[tuple[str, str], int] = {}
    for name in graph.modules:
        for imported in graph.find_modules_directly_imported_by(name):
            here, there = code.module(name), code.module(imported)
            if here is not None and there is not None:
                details = graph.get_import_details(importer=name, imported=imported)
                edges[here.path, there.path] = details[0]["line_number"]
    return edges


def _circles(edges: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    ahead: dict[str, set[str]] = {}
    for here, there in edges:
        ahead.setdefault(here, set()).add(there)
    reached = {path: _reached(ahead, path) for path in ahead}
    circles = {
        tuple(sorted(other for other in found if path in reached.get(other, ())))
        for path, found in reached.items()
        if path in found
    }
    return sorted(circles)


def _reached(ahead: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = ahead.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def _sentences(code: Code) -> Iterator[Row]:
    summaries, fragments, words = [], [], []
    texts = entries = 0
    for module in code.modules.values():
        for text in docstrings(module.tree):
            texts += 1
            entries += len(list(text.entries()))
            if text.asks():
                summaries.append(f"{module.path}:{text.line} {text.summary}")
            fragments += [f"{module.path}:{line} {entry}" for line, entry in text.fragments()]
            words += [f"{module.path}:{line} {word}" for line, word in text.words()]
    title = "docstring summaries that begin with What, Of, How …"
    yield Row(name="summaries", title=title, goal="< 1 %", places=summaries, of=texts)
    title = "Args entries that are a fragment"
    yield Row(name="fragments", title=title, goal="none", places=fragments, of=entries)
    title = "words that sentences do without"
    yield Row(name="words", title=title, goal="none", places=words)


def _statements(code: Code) -> Iterator[Row]:
    conditionals, parallel, long = [], [], []
    lines = assignments = 0
    for module in code.modules.values():
        lines += len(module.lines)
        for number, line in enumerate(module.lines, start=1):
            if len(line) > COLUMNS:
                long.append(f"{module.path}:{number} {len(line)} columns")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.IfExp):
                conditionals.append(f"{module.path}:{node.lineno} {ast.unparse(node)}")
            elif isinstance(node, ast.Assign):
                assignments += 1
                if _is_parallel(node):
                    parallel.append(f"{module.path}:{node.lineno} {ast.unparse(node)}")
    title = "conditional expressions per 1000 lines"
    yield Row(name="conditionals", title=title, goal="≤ 6", places=conditionals, of=lines, per=1000)
    title = "parallel assignments"
    yield Row(name="parallel", title=title, goal="≤ 2 %", places=parallel, of=assignments)
    yield Row(name="long", title=f"lines over {COLUMNS} columns", goal="0", places=long, of=lines)


def _is_parallel(node: ast.Assign) -> bool:
    """Tell whether several names are assigned one by one in one statement, and it is no swap."""
    if not (isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)):
        return False
    names = {ast.unparse(name) for name in node.targets[0].elts}
    return names != {ast.unparse(value) for value in node.value.elts}


def _walk(code: Code) -> Iterator[Row]:
    stays = [list(stay) for _, stay in groupby(walk(code), key=lambda stop: stop.module.path)]
    texts = [f"{stay[0].at} {', '.join(stop.name for stop in stay)}" for stay in stays]
    title = "stays of a walk through the branching loop"
    yield Row(name="stays", title=title, goal="≤ 40", places=texts)
    counts = Counter(stay[0].module.path for stay in stays)
    files = [f"{path}:1 {count} stays" for path, count in counts.most_common()]
    yield Row(name="files", title="files that the walk stays in", goal="fewer", places=files)
    climbs = [
        f"{after[0].at} {after[0].name}, from {before[-1].at} {before[-1].name}"
        for before, after in pairwise(stays)
        if code.climbs(before[-1].module.path, after[0].module.path)
    ]
    known = climbs if code.layers else None
    yield Row(name="walk_climbs", title="climbs of the walk", goal="≤ 5", places=known)


def _names(code: Code) -> Iterator[Row]:
    faces = [module for path, module in code.modules.items() if path.endswith("/__init__.py")]
    exported = [
        f"{module.path}:{name.lineno} {ast.unparse(name)}"
        for module in faces
        if module.folder in PACKAGES
        for name in module.exported
    ]
    public = sum(len(_public(module.tree)) for module in code.modules.values())
    title = "names exported by the four packages, of all public names"
    yield Row(name="exported", title=title, goal="", places=exported, of=public)
    faceless = [f"{module.path}:1" for module in faces if not module.exported]
    yield Row(name="faces", title="folders without a face", goal="none", places=faceless)


def _public(node: ast.Module | ast.ClassDef) -> list[Definition]:
    """Return the public functions and classes of a module, and the methods of these classes."""
    found = [one for one in node.body if isinstance(one, Definition) and one.name[0] != "_"]
    if isinstance(node, ast.Module):
        for one in list(found):
            if isinstance(one, ast.ClassDef):
                found += [inner for inner in _public(one) if isinstance(inner, Function)]
    return found


def main() -> None:
    """Print the table, one JSON object, or the places of one row."""
    summary, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout (default: this one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--list", metavar="ROW", help="print the places of one row")
    options = parser.parse_args()
    code = Code(options.root)
    rows = {row.name: row for row in measure(code)}
    if options.list:
        if options.list not in rows:
            parser.error(f"--list expects one of {', '.join(rows)}, found {options.list!r}")
        places = rows[options.list].places
        print("\n".join([NO_LAYERS] if places is None else places))
    elif options.json:
        print(json.dumps({name: row.values() for name, row in rows.items()}, ensure_ascii=False))
    else:
        print(f"{'row':13} {'':57} {'today':24} goal")
        for row in rows.values():
            print(f"{row.name:13} {row.title:57} {row!s:24} {row.goal}")
        if not code.layers:
            print(f"\n{NO_LAYERS}")


if __name__ == "__main__":
    main()
