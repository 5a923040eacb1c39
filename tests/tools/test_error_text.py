"""Errors in words: a user's own mistake is its sentence, anything else names its kind."""

from __future__ import annotations

import pytest

from trainenv.tools.error_text import describe_error
from trainenv.types import UserError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("steps must be 1 or more, found 0"), "steps must be 1 or more, found 0"),
        (UserError("x" * 400), "x" * 400),  # what to do comes last: it is not cut off
        (ValueError("no"), "ValueError: no"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (RuntimeError("x" * 400), "RuntimeError: " + "x" * 286),
        (KeyError("a"), "KeyError: 'a'"),
    ],
)
def test_an_error_is_described(error: Exception, words: str) -> None:
    assert describe_error(error) == words
