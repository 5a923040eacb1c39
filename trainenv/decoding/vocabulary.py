"""Check that the draft and the target speak of the same tokens."""

from __future__ import annotations

from typing import Any

from trainenv.types import UserError


def check_same(
    *, target: int, draft: int, target_tokenizer: Any | None, draft_tokenizer: Any | None
) -> None:
    """Refuse two vocabularies that differ, naming the first token at which they do.

    With both tokenizers known, the tokens are compared one by one, and the numbers of logits may
    differ: models often pad their output layer. Without them the numbers must be equal.

    Args:
        target: Number of tokens that the target gives logits for.
        draft: Number of tokens that the draft gives logits for.
        target_tokenizer: Tokenizer of the target, with `get_vocab()`; None if it is not known.
        draft_tokenizer: Tokenizer of the draft, with `get_vocab()`; None if it is not known.

    Raises:
        UserError: The vocabularies differ.
    """
    if target_tokenizer is None or draft_tokenizer is None:
        if target != draft:
            raise UserError(
                f"draft and target must have the same vocabulary, found {draft} tokens and "
                f"{target}; take models of one family, or give both tokenizers if only the padding "
                "of the output layer differs"
            )
        return
    difference = first_difference(target_tokenizer.get_vocab(), draft_tokenizer.get_vocab())
    if difference is not None:
        raise UserError(
            f"draft and target must have the same tokenizer, found a difference at {difference}; "
            "take models of one family"
        )


def first_difference(target: dict[str, int], draft: dict[str, int]) -> str | None:
    """Return the lowest token id at which two vocabularies differ, in words; None if they agree."""
    ours = {index: token for token, index in target.items()}
    theirs = {index: token for token, index in draft.items()}
    for index in sorted(ours.keys() | theirs.keys()):
        if ours.get(index) != theirs.get(index):
            return (
                f"token {index}: {_shown(theirs.get(index))} of the draft, "
                f"{_shown(ours.get(index))} of the target"
            )
    return None


def _shown(token: str | None) -> str:
    if token is None:
        return "none"
    return repr(token)
