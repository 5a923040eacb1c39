"""Text without spaces: a BPE is trained on it in time that grows as the text does, and Ctrl-C ends the wait."""

from __future__ import annotations

import base64
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainenv.data import bpe
from trainenv.data.documents import Documents
from trainenv.data.tokenizers import interruptible

SIZE = 150_000  # took 9 s when a word's length was unbounded
DRAW = random.Random(0)
TEXTS: dict[str, str] = {
    "DNA": "".join(DRAW.choices("ACGT", k=SIZE)),
    "base64": base64.b64encode(DRAW.randbytes(SIZE)).decode(),
    "one letter": "a" * SIZE,
    "spaces": "x" + " " * SIZE,
    "line feeds": "x" + "\n" * SIZE,
    "dashes": "-" * SIZE,
    "Chinese": "".join(DRAW.choices([chr(0x4E00 + place) for place in range(300)], k=SIZE // 3)),
}


def documents(*texts: str) -> Documents:
    return Documents(("x",), lambda shard: iter([text.encode() for text in texts]))


@pytest.mark.parametrize("name", TEXTS)
def test_a_long_word_takes_no_square_of_time_and_comes_back(name: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    trained = bpe.train(documents(TEXTS[name]), 262, tmp_path)
    tokens = trained.encode([TEXTS[name].encode()])[0]
    assert time.perf_counter() - start < 5
    assert trained.decode(tokens) == TEXTS[name]
    assert len(tokens) < len(TEXTS[name].encode())


def test_words_that_are_not_long_give_the_tokens_that_they_always_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound changes nothing below it, also where one word in the text is above."""
    words = "".join(DRAW.choices("ab cd efgh\n", k=4000))
    plain = bpe.train(documents(words), 280, tmp_path / "plain").text
    monkeypatch.setattr(bpe, "LONGEST", 512)
    monkeypatch.setattr(bpe, "_LONG", bpe.re.compile("a"))  # as if there were one
    assert bpe.train(documents(words), 280, tmp_path / "bounded").text == plain


def test_an_interrupt_ends_the_wait_for_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        signal.raise_signal(signal.SIGINT)  # heard by the main thread, which waits
        time.sleep(20)

    start, before = time.perf_counter(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # a shell starts what runs in the background with the signal ignored
        with pytest.raises(KeyboardInterrupt):
            interruptible(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_the_work_gives_or_raises_is_handed_on(error: BaseException) -> None:
    def fail() -> None:
        raise error

    work: Callable[[], int] = lambda: 3  # noqa: E731
    assert interruptible(work) == 3
    with pytest.raises(type(error)):
        interruptible(fail)
