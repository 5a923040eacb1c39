"""Speculative sampling with a pipeline: the draft continues while the target verifies.

While the target reads the drafted tokens x₁ … x_n, the draft proposes y₁ … y_K from its own last
token x_n. If x₁ … x_n are all accepted, the target knows its distribution p after x_n, and y₁ is
accepted or replaced under it as any other drafted token: it takes the place of the bonus token. If
y₁ is accepted, y₂ … y_K are the next draft, with no wait. Tokens drafted past a rejection are
dropped. They do not influence what is kept, so the distribution stays that of the target.

On one device the draft and the target take turns, and nothing is gained; on two,
`Generation.seconds_on_two_devices` counts the longer of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainenv.decoding.rules.exact import Exact


@dataclass(frozen=True, kw_only=True)
class Pipelined(Exact):
    """Rejection as in `Exact`, with a draft that does not wait for the target."""

    drafts_ahead: ClassVar[bool] = True
