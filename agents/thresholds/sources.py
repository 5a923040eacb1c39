"""Recorded traces and costs of model pairs, as `trainenv.decoding.pairs` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainenv.decoding.pairs import costs_path, trace_files
from trainenv.decoding.traces import CostModel, Trace
from trainenv.decoding.traces.file import load_costs, load_trace
from trainenv.tools.checks import number
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

MEASURED = "measured"
"""Clock of costs that were measured."""
_SLOPE = 0.02  # of a target call with each token after the first, in textbook clocks


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A recorded trace with the costs of its pair.

    Attributes:
        pair: Name of the model pair.
        corpus: Name of the corpus.
        trace: Trace.
        costs: Times of the pair.
        clock: Origin of the costs: `measured`, or the share of a target call that a draft step
            costs.
    """

    pair: str
    corpus: str
    trace: Trace = field(repr=False)
    costs: CostModel = field(repr=False)
    clock: str = MEASURED

    @property
    def name(self) -> str:
        """Pair, corpus and clock."""
        name = f"{self.pair} on {self.corpus}"
        if self.clock != MEASURED:
            name += f", draft step {self.clock}"
        return name

    def timed(self, ratio: float) -> Source:
        """Return the source with a textbook clock: a draft step costs a share of a target call."""
        costs = CostModel.of_ratio(ratio, per_token=_SLOPE)
        return replace(self, costs=costs, clock=f"{ratio:g}")


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
    found = list(trace_files(folder))
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


def with_clocks(sources: Sequence[Source], clocks: Sequence[str]) -> list[Source]:
    """Return each source with each clock.

    Args:
        sources: Sources with measured costs.
        clocks: `measured`, or shares of a target call that a draft step costs, as text.

    Raises:
        UserError: A clock is neither.
    """
    found = list[Source]()
    for clock in (text.strip() for text in clocks):
        if clock == MEASURED:
            found += sources
            continue
        try:
            ratio = float(clock)
        except ValueError:
            raise UserError(
                f"a clock must be {MEASURED} or a number such as 0.1, found {clock!r}"
            ) from None
        number("the share of a draft step", ratio, above=0)
        found += [source.timed(ratio) for source in sources]
    return found


def _known(kind: str, wanted: Sequence[str], there: set[str]) -> None:
    for name in wanted:
        if name not in there:
            raise UserError(
                f"expected a {kind} of the traces ({', '.join(sorted(there))}), found {name!r}"
                f"{nearest(name, there)}"
            )
