"""Sequences of interventions: which are legal, all of them, and an even or a random choice of some."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trainenv.interventions import PARTS
from trainenv.types import ActionSpace, Intervention, Masks, PlanningProblem, UserError

Sequenced = tuple[Intervention, ...]

NOTHING: Sequenced = (Intervention(),)


def canonical(sequence: Sequence[Intervention]) -> Sequenced:
    """A sequence without doing nothing at its end; of nothing else, one entry is left."""
    end = len(sequence)
    while end > 1 and sequence[end - 1].does_nothing:
        end -= 1
    return tuple(sequence[:end]) or NOTHING


class Legality:
    """What the masks of a problem allow, remembered."""

    def __init__(self, problem: PlanningProblem) -> None:
        self._problem = problem
        self._now: dict[Intervention, str] = {}

    def objection(self, sequence: Sequenced) -> str:
        """Why a sequence may not be proposed; empty where it may.

        Asks the later masks only for what is legal now.
        """
        if len(sequence) > self._problem.decisions_left:
            return f"illegal: {len(sequence)} decisions where the run has {self._problem.decisions_left} left"
        after = self._problem.masks_after
        for place, intervention in enumerate(sequence):
            if place == 0 or after is None:
                found = self._now.get(intervention)
                if found is None:
                    found = self._now[intervention] = self._under(self._problem.masks, intervention)
            else:
                found = (
                    ""
                    if intervention.does_nothing
                    else self._under(after(sequence[:place]), intervention)
                )
            if found:
                return (
                    f"illegal: {found}"
                    if len(sequence) == 1
                    else f"illegal at decision {place}: {found}"
                )
        return ""

    def _under(self, masks: Masks, intervention: Intervention) -> str:
        try:
            vector = self._problem.codec.encode(intervention).tolist()
        except UserError as error:
            return str(error)
        masked = [
            str(part)
            for part, (mask, value) in enumerate(zip(masks, vector, strict=True))
            if not mask[value]
        ]
        return f"a mask forbids the value of part {', '.join(masked)}" if masked else ""


def values(masks: Masks) -> list[NDArray[np.int64]]:
    """For each part of the action its legal values, rising."""
    return [np.flatnonzero(mask).astype(np.int64) for mask in masks]


def factor(codec: ActionSpace, part: int, value: int) -> float:
    """What a value of an ordered part (the learning-rate or the weight-decay scale) multiplies by."""
    vector = np.zeros(len(codec.sizes), dtype=np.int64)
    vector[part] = value
    return float(getattr(codec.decode(vector), PARTS[part]))


def count(masks: Masks, decisions: int = 1) -> int:
    """How many legal sequences of that many decisions there are, doing nothing among them."""
    total: int = math.prod(int(np.count_nonzero(mask)) for mask in masks) ** decisions
    return total


def exhaustive(masks: Masks) -> NDArray[np.int64]:
    """Every legal action vector, doing nothing first: [n, parts]."""
    grids = np.meshgrid(*values(masks), indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1)


def uniform(
    masks: Masks, rows: int, decisions: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Legal action vectors drawn with equal chances and with replacement: [rows, decisions, parts]."""
    return _placed(masks, generator.random((rows, decisions * len(masks))), decisions)


def even(
    masks: Masks, rows: int, decisions: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Legal action vectors spread evenly over the space, [rows, decisions, parts]; some may be equal.

    The additive recurrence of Roberts (2018, "The unreasonable effectiveness of quasirandom
    sequences"): point n is shift + n·(1/φ, 1/φ², …, 1/φ^d) mod 1, where φ > 1 solves φ^(d+1) = φ +
    1; the shift is drawn (Cranley and Patterson 1976). Parts with one legal value take no
    dimension.
    """
    free = np.tile([np.count_nonzero(mask) > 1 for mask in masks], decisions)
    dimensions = int(np.count_nonzero(free))
    phi = 2.0
    for _ in range(40):
        phi = (1 + phi) ** (1 / (dimensions + 1))
    steps = phi ** -np.arange(1.0, dimensions + 1)
    points = np.zeros((rows, len(free)))
    points[:, free] = (generator.random(dimensions) + np.arange(rows)[:, None] * steps) % 1.0
    return _placed(masks, points, decisions)


def _placed(masks: Masks, points: NDArray[np.float64], decisions: int) -> NDArray[np.int64]:
    """Points of the unit cube [rows, decisions · parts] as legal action vectors [rows, decisions, parts]."""
    legal = values(masks)
    counts = np.array([len(part) for part in legal] * decisions)
    places = np.minimum((points * counts).astype(np.int64), counts - 1)
    table = np.zeros((len(legal), counts.max()), dtype=np.int64)
    for part, listed in enumerate(legal):
        table[part, : len(listed)] = listed
    rows = np.tile(np.arange(len(legal)), decisions)
    placed: NDArray[np.int64] = table[rows, places].reshape(len(points), decisions, len(legal))
    return placed


def some(
    problem: PlanningProblem,
    wanted: int,
    decisions: int,
    draw: Callable[[Masks, int, int, np.random.Generator], NDArray[np.int64]],
) -> Iterator[Sequenced]:
    """Up to `wanted` different sequences that do something: all of them, shuffled, where there are no more, else drawn by `draw`.

    Later decisions are drawn under the masks of now; who looks at the sequences drops what is
    illegal then.
    """
    masks = problem.masks
    decode = problem.codec.decode
    if count(masks, decisions) - 1 <= wanted and decisions == 1:
        yield from (
            (decode(vector),) for vector in problem.generator.permutation(exhaustive(masks)[1:])
        )
        return
    known: dict[bytes, Intervention] = {}
    seen = {NOTHING}
    for _ in range(
        8
    ):  # most draws are new ones: a few rounds will do, and then it is all right to have fewer
        for rows in draw(masks, max(16, 2 * wanted), decisions, problem.generator):
            for vector in rows:
                if vector.tobytes() not in known:
                    known[vector.tobytes()] = decode(vector)
            sequence = canonical([known[vector.tobytes()] for vector in rows])
            if sequence in seen:
                continue
            if len(seen) > wanted:
                return
            seen.add(sequence)
            yield sequence
