"""Recorded traces and costs of model pairs, as they lie in a folder.

| in the folder | holds |
|---|---|
| `traces/PAIR--CORPUS.trace` | the trace of a pair on a corpus |
| `costs/PAIR.json` | the cost model of a pair |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainenv.agents.thresholds.evaluation import Source
from trainenv.decoding.traces.file import SUFFIX, load_costs, load_trace
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

BETWEEN = "--"
"""Characters between pair and corpus in the name of a trace's file."""


def read_sources(
    folder: Path, *, pairs: Sequence[str] = (), corpora: Sequence[str] = ()
) -> list[Source]:
    """Return the sources of a folder.

    Args:
        folder: Folder with `traces` and `costs`.
        pairs: Names of the pairs to read; all by default.
        corpora: Names of the corpora to read; all by default.

    Raises:
        UserError: There is no trace, a name is unknown, a pair has no costs, or a file is broken.
    """
    found = list(_files(folder))
    if not found:
        raise UserError(
            f"expected traces in {folder / 'traces'}, found none; "
            "record them with trainenv decode trace"
        )
    _known("pair", pairs, {pair for pair, _, _ in found})
    _known("corpus", corpora, {corpus for _, corpus, _ in found})
    return [
        Source(
            pair=pair,
            corpus=corpus,
            trace=load_trace(path),
            costs=load_costs(costs_path(folder, pair)),
        )
        for pair, corpus, path in found
        if (not pairs or pair in pairs) and (not corpora or corpus in corpora)
    ]


def trace_path(folder: Path, pair: str, corpus: str) -> Path:
    """Return the place of a trace's file."""
    return folder / "traces" / f"{pair}{BETWEEN}{corpus}{SUFFIX}"


def costs_path(folder: Path, pair: str) -> Path:
    """Return the place of the cost model of a pair."""
    return folder / "costs" / f"{pair}.json"


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield pair, corpus and file of each trace, in the order of their names."""
    for path in sorted((folder / "traces").glob(f"*{BETWEEN}*{SUFFIX}")):
        pair, _, corpus = path.name.removesuffix(SUFFIX).partition(BETWEEN)
        yield pair, corpus, path


def _known(kind: str, wanted: Sequence[str], there: set[str]) -> None:
    for name in wanted:
        if name not in there:
            raise UserError(
                f"expected a {kind} of the traces ({', '.join(sorted(there))}), found {name!r}"
                f"{nearest(name, there)}"
            )
