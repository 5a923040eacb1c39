"""Copies of nested state into existing tensors, so that a restore costs no more than the copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Copies:
    """Copies of nested state that share no memory with it.

    A tensor that occurs twice in the state occurs twice in the copy.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Tensor] = {}  # by the id of what was copied
        self._used: set[int] = set()  # ids of what was copied into

    def of(self, saved: Any, live: Any) -> Any:
        """Return a copy of `saved`, written into the tensors of `live` where they fit.

        Args:
            saved: Nested dicts and lists of tensors and JSON values.
            live: Counterpart with tensors to write into; may be incomplete. A list becomes a tuple
                where `live` has one.
        """
        if isinstance(saved, Tensor):
            if id(saved) not in self._copies:
                self._copies[id(saved)] = self._copy(saved, live)
            return self._copies[id(saved)]
        if isinstance(saved, dict):
            have: Mapping[Any, Any] = {}
            if isinstance(live, Mapping):
                have = live
            return {key: self.of(part, have.get(key)) for key, part in saved.items()}
        if isinstance(saved, list | tuple):
            fits = isinstance(live, list | tuple) and len(live) == len(saved)
            parts = [
                self.of(part, old)
                for part, old in zip(saved, live if fits else [None] * len(saved))
            ]
            if isinstance(live, tuple):
                return tuple(parts)
            return parts
        return saved

    def follow(self, saved: Any, live: Any) -> None:
        """Take the tensors of `live` as the copies of `saved`: a loader may have cloned them."""
        if isinstance(saved, Tensor) and isinstance(live, Tensor):
            self._copies[id(saved)] = live
        elif isinstance(saved, dict) and isinstance(live, Mapping):
            for key, part in saved.items():
                self.follow(part, live.get(key))
        elif isinstance(saved, list) and isinstance(live, list | tuple):
            for part, inner in zip(saved, live):
                self.follow(part, inner)

    def _copy(self, saved: Tensor, live: Any) -> Tensor:
        if (
            not isinstance(live, Tensor)
            or live.dtype != saved.dtype
            or live.shape != saved.shape
            or id(live) in self._used
        ):
            return saved.clone()
        self._used.add(id(live))
        # From pinned memory a GPU fetches it in the background, before it runs whatever comes next.
        return live.copy_(saved, non_blocking=live.is_cuda)
