"""Measured settings of a task, for the pictures of the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from trainenv.agents.thresholds.plan import Plan
from trainenv.agents.thresholds.sources import Source

_PICTURED = 8  # texts of a picture


def picture(source: Source, plan: Plan) -> dict[str, Any]:
    """Return a source's names, and measured settings of the exact and the lossy rule."""
    trace = source.trace.select(np.arange(min(_PICTURED, source.trace.rows)))
    points = []
    for rule, count in (("exact", 100), ("lossy", 125)):
        task = replace(plan, rule=rule).task(source, trace, trace)
        for point in task.space.lattice(count):
            values = task.space.values(point)
            found = task.measure(values)
            kept = {name: found[name] for name in ("speedup", "acceptance", "distance")}
            points.append({"rule": rule, **values, **kept})
    return {
        "pair": source.pair,
        "corpus": source.corpus,
        "clock": source.clock,
        "name": source.name,
        "points": points,
    }
