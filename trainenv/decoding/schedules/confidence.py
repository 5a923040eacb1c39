"""The dynamic confidence threshold of transformers 5: a ROC curve chooses it after each block.

`assistant_confidence_threshold` in transformers (`candidate_generator.py`, the default of assisted
generation since 4.47): a block ends after the first token whose probability under the draft is
below the threshold. After each block, the probabilities of all drafted tokens so far and whether
they matched give a ROC curve, and the threshold becomes the one with the least

    false-positive rate + 3 · false-negative rate

once there are more than five tokens, of which some matched and some did not.

Deviations: the length is bounded. The curve is updated after every block until there are `memory`
tokens, then it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainenv.tools.checks import number, whole

_FEW = 5  # tokens below which the threshold is kept


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """End a block at a confidence that is updated after each block.

    Args:
        threshold: Confidence at the start, 0 to 1.
        most: Greatest draft length.
        memory: Number of tokens after which the threshold is kept.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    threshold: float = 0.4
    most: int = 16
    memory: int = 4000

    def __post_init__(self) -> None:
        number("threshold", self.threshold, least=0, most=1)
        whole("most", self.most, least=1)
        whole("memory", self.memory, least=1)

    def begin(self) -> ConfidenceState:
        """Return the state at the start."""
        return ConfidenceState(tokens=self.most, threshold=self.threshold, memory=self.memory)


@dataclass
class ConfidenceState:
    """Threshold, and the tokens that it was chosen from."""

    tokens: int
    threshold: float
    memory: int
    probabilities: list[float] = field(default_factory=list)
    matches: list[bool] = field(default_factory=list)

    def ends(self, own: Sequence[float], top: Sequence[float], /) -> bool:
        return own[-1] < self.threshold

    def update(self, own: Sequence[float], accepted: int, complete: bool, /) -> None:
        if len(self.matches) >= self.memory:
            return
        self.probabilities += own
        self.matches += [place < accepted for place in range(len(own))]
        if len(self.matches) > _FEW and any(self.matches) and not all(self.matches):
            self.threshold = best_threshold(self.probabilities, self.matches)


def best_threshold(probabilities: list[float], matches: list[bool]) -> float:
    """Return the threshold with the least false-positive rate + 3 · false-negative rate.

    Args:
        probabilities: Probabilities of the drafted tokens, [N].
        matches: True where a token matched the target, [N], some of them and not all.
    """
    scores = np.array(probabilities)
    right = np.array(matches)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)  # last of equal scores
    true = np.cumsum(right[order])[ends]
    false = np.cumsum(~right[order])[ends]
    costs = false / false[-1] + 3 * (1 - true / true[-1])
    return float(scores[order][ends][int(costs.argmin())])
