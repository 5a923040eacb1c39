"""A byte-level BPE trained on the corpus.

BPE: Sennrich et al. 2016; over bytes as in Radford et al. 2019.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from trainenv.data import cache
from trainenv.data.documents import Documents, Survey
from trainenv.data.tokenizers import END_OF_TEXT, Subwords, interruptible
from trainenv.types import UserError

SAMPLE = 8 << 20  # bytes of text that a BPE is trained on, at most; this takes a few seconds
# Bytes of a word that a BPE is trained on: the time grows with the square of a word's length.
LONGEST = 1024
# Words that may be longer; counted in characters, which have at most 4 bytes.
_LONG = re.compile(rf"[^ \t\r\n]{{{LONGEST // 4},}}|\s{{{LONGEST // 4},}}")


def train(
    documents: Documents, vocab_size: int, folder: Path, *, streams: bool = False
) -> Subwords:
    """Train a BPE of at most `vocab_size` tokens, or take it from the cache in `folder`.

    It is trained on a sample of at most 8 MiB: documents from all of the text, or the beginning of
    a stream. The same text gives the same tokenizer; the content of the sample is its key in the
    cache.

    Raises:
        UserError: There is too little text for the vocabulary.
    """
    stride = 1
    if not streams:
        stride = max(1, -(-Survey.of(iter(documents)).size // SAMPLE))
    survey = Survey.of(_sample(documents, stride))
    path = folder / f"bpe-{survey.digest}-{vocab_size}.json"
    if cache.facts(path) is None:
        cache.write(path, _trained(_sample(documents, stride), vocab_size).encode())
    bpe = Subwords(path.read_text(encoding="utf-8"), str(path))
    if bpe.vocab_size < vocab_size:
        raise UserError(
            f"expected text for a vocabulary of {vocab_size} tokens, found {survey.size} bytes, "
            f"enough for {bpe.vocab_size}; set corpus.vocab_size to at most {bpe.vocab_size}, or "
            "give more text"
        )
    return bpe


def _sample(documents: Documents, stride: int) -> Iterator[bytes]:
    """Yield every `stride`-th document until the sample is full; the last one is cut."""
    left = SAMPLE
    for place, document in enumerate(documents):
        if place % stride == 0:
            yield document[:left]
            left -= len(document)
        if left <= 0:
            return


def _trained(sample: Iterator[bytes], vocab_size: int) -> str:
    """Train a tokenizer and return its JSON.

    Words longer than `LONGEST` (DNA, base64) are split into pieces for training, but later encoded
    whole.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Rust

    texts = [document.decode(errors="replace") for document in sample]
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust = Rust(models.BPE())
    rust.pre_tokenizer = words
    if any(_LONG.search(text) for text in texts):
        pieces = pre_tokenizers.Split(Regex(f".{{{LONGEST}}}"), "isolated")
        rust.pre_tokenizer = pre_tokenizers.Sequence([words, pieces])
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    interruptible(lambda: rust.train_from_iterator(iter(texts), trainer))
    rust.pre_tokenizer = words
    return str(rust.to_str())
