"""Sequences of interventions: check their legality, list them all, or choose some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainenv.interventions import PARTS
from trainenv.types import ActionSpace, Intervention, Masks, PlanningProblem, UserError

Interventions = tuple[Intervention, ...]

NOTHING: Interventions = (Intervention(),)
_ROUNDS = 8  # draws of `some`: most sequences are new ones, so that a few rounds suffice


def canonical(sequence: Sequence[Intervention]) -> Interventions:
    """Return a sequence without idle interventions at its end, but with at least one entry."""
    end = len(sequence)
    while end > 1 and sequence[end - 1].does_nothing:
        end -= 1
    return tuple(sequence[:end]) or NOTHING


class Legality:
    """The masks of a problem as a check of sequences; it remembers its answers."""

    def __init__(self, problem: PlanningProblem) -> None:
        self._problem = problem
        self._now: dict[Intervention, str] = {}

    def objection(self, sequence: Interventions) -> str:
        """Return why a sequence may not be proposed; empty if it may.

        The masks of later decisions are computed only if all decisions before them are legal.
        """
        left = self._problem.decisions_left
        if len(sequence) > left:
            return f"illegal: {len(sequence)} decisions where the run has {left} left"
        if self._problem.rate_bounds is not None and all(map(_changes_rate_alone, sequence)):
            return _beyond(self._problem.rate_bounds, sequence)
        for place in range(len(sequence)):
            found = self._objection_at(place, sequence)
            if found and len(sequence) == 1:
                return f"illegal: {found}"
            if found:
                return f"illegal at decision {place}: {found}"
        return ""

    def _objection_at(self, place: int, sequence: Interventions) -> str:
        """Return why the intervention at one decision is illegal; empty if it is legal."""
        intervention = sequence[place]
        after = self._problem.masks_after
        if place > 0 and after is not None:
            if intervention.does_nothing:
                return ""
            return self._under(after(sequence[:place]), intervention)
        if intervention not in self._now:
            self._now[intervention] = self._under(self._problem.masks, intervention)
        return self._now[intervention]

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
        if not masked:
            return ""
        return f"a mask forbids the value of part {', '.join(masked)}"


def _changes_rate_alone(intervention: Intervention) -> bool:
    return replace(intervention, lr_scale=1.0).does_nothing


def _beyond(bounds: tuple[float, float], sequence: Interventions) -> str:
    """Return why the rates of a sequence leave their bounds; empty if they do not.

    Changes back towards the bounds are legal, also from outside.
    """
    low, high = bounds
    factor = 1.0
    for one in sequence:
        factor *= one.lr_scale
        if (factor > high * (1 + 1e-9) and one.lr_scale > 1) or (
            factor < low * (1 - 1e-9) and one.lr_scale < 1
        ):
            return f"illegal: a factor of {factor:.3g} on the rate, outside {low:.3g} to {high:.3g}"
    return ""


def values(masks: Masks) -> list[NDArray[np.int64]]:
    """Return the legal values of each part of the action, in rising order."""
    return [np.flatnonzero(mask).astype(np.int64) for mask in masks]


def factor(codec: ActionSpace, part: int, value: int) -> float:
    """Return the factor that a value of the learning-rate or weight-decay part multiplies by."""
    vector = np.zeros(len(codec.sizes), dtype=np.int64)
    vector[part] = value
    return float(getattr(codec.decode(vector), PARTS[part]))


def count(masks: Masks, decisions: int = 1) -> int:
    """Count the legal sequences of that many decisions, doing nothing included."""
    total: int = math.prod(int(np.count_nonzero(mask)) for mask in masks) ** decisions
    return total


def exhaustive(masks: Masks) -> NDArray[np.int64]:
    """Return every legal action vector, doing nothing first: [n, parts]."""
    grids = np.meshgrid(*values(masks), indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1)


def uniform(
    masks: Masks, rows: int, decisions: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw legal action vectors uniformly, with replacement: [rows, decisions, parts]."""
    return _placed(masks, generator.random((rows, decisions * len(masks))), decisions)


def even(
    masks: Masks, rows: int, decisions: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw legal action vectors evenly over the space: [rows, decisions, parts]; some may be equal.

    The points are the additive recurrence of Roberts (2018, "The unreasonable effectiveness of
    quasirandom sequences"): point n is shift + n·(1/φ, 1/φ², …, 1/φ^d) mod 1, where φ > 1 solves
    φ^(d+1) = φ + 1; the shift is drawn (Cranley and Patterson 1976). Parts with one legal value
    take no dimension.
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
    """Map points of the unit cube, [rows, decisions · parts], to legal action vectors.

    Returns:
        Action vectors, [rows, decisions, parts].
    """
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
) -> Iterator[Interventions]:
    """Yield up to `wanted` different sequences that do something.

    If there are no more than `wanted` of one decision, all are yielded, shuffled; otherwise they
    are drawn. Later decisions are drawn under the masks of now; the caller drops those that are
    illegal later on.

    Args:
        problem: Problem that has the masks, the codec and the generator.
        wanted: Number of sequences.
        decisions: Number of decisions that a sequence spans.
        draw: Function that draws action vectors: `even` or `uniform`.
    """
    masks = problem.masks
    decode = problem.codec.decode
    if count(masks, decisions) - 1 <= wanted and decisions == 1:
        for vector in problem.generator.permutation(exhaustive(masks)[1:]):
            yield (decode(vector),)
        return
    known: dict[bytes, Intervention] = {}
    seen = {NOTHING}
    for _ in range(_ROUNDS):
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
