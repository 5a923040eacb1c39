"""What several commands share: `KEY=VALUE` overrides, and being asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_ERROR = 2
INTERRUPTED = 130
_NOTHING = ("", "~", "null", "Null", "NULL")  # as YAML spells it
Result = tuple[dict[str, Any], int]
"""What a command prints with `--json`, and its exit code."""


def overrides_of(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs.

    Names, paths and choices are text as it is typed, or quoted; other values are read as YAML.
    """
    from trainenv.config.presets import parse_value
    from trainenv.config.schema import takes_text

    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(
                f"--set takes KEY=VALUE, found {pair!r}; for example --set optimizer.lr=1e-3"
            )
        try:
            as_typed = (
                takes_text(key) and value.strip() not in _NOTHING and value.strip()[0] not in "\"'"
            )
            overrides[key] = value if as_typed else parse_value(value)
        except ValueError:
            raise UserError(
                f"--set {key}: the value {value!r} is not valid YAML; quote it"
            ) from None
    return overrides


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop at the next block; a second one stops at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
