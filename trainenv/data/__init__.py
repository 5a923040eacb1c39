"""Training data: text is tokenised into a corpus, and batches are cut from it.

    corpus = data.load(config.corpus)
    batches = data.CorpusBatches(corpus, context=64, batch_size=8)
    batches(0)

`tasks` has samples of tasks with verifiable solutions instead of running text:

    corpus = data.load_samples(config.corpus, config.tasks)

`documents`, `local` and `hub` read text, `tokenizers`, `bpe` and `gpt2_tokens` turn it into tokens,
`corpus` and `token_stream` hold them, and `batches` and `stressors` make batches. Data of your own
become batches by `DatasetBatches` (a map-style data set), `TokenFileBatches` or `StreamBatches`. A
batch is a pure function of the data index.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash

from trainenv.config.schema import CorpusConfig, TaskConfig
from trainenv.data import bpe, cache, gpt2_tokens, hub
from trainenv.data.batches import CorpusBatches, epoch_steps
from trainenv.data.corpus import Corpus, Growing, Split, held_out, interleaved, rarest
from trainenv.data.corrupted import CorruptedBatches, corrupted_set
from trainenv.data.documents import Documents, Source, Survey, listed, standard_library, text_files
from trainenv.data.map_style import DatasetBatches
from trainenv.data.streams import StreamBatches
from trainenv.data.tasks import SampleBatches, SampleCorpus, sample_corpus
from trainenv.data.token_files import TokenFileBatches
from trainenv.data.token_stream import TokenStream
from trainenv.data.tokenizers import Bytes, IntArray, Tokenizer, dtype
from trainenv.types import UserError

__all__ = [
    "Corpus",
    "CorpusBatches",
    "CorruptedBatches",
    "DatasetBatches",
    "SampleBatches",
    "SampleCorpus",
    "Split",
    "StreamBatches",
    "TokenFileBatches",
    "TokenStream",
    "corrupted_set",
    "epoch_steps",
    "identity",
    "load",
    "load_samples",
    "source",
    "tokenizer",
]

# Typical results of wrong encodings and double escapes.
ARTEFACTS = (
    "ï»¿Ã©â€™ï¿½Â\xa0â€œ\ufffd\ufffdÃƒÂ©\u200b\u00ad\ufeffÐ¿Ñ€Ð¸\x00\x7f\u202eä½\xa0å¥½ "
    "&amp;#8217; \\u00e9"
)
HELD_OUT = 1_000_000  # tokens that are read of a stream's validation split
_HEAD = 16  # documents of a stream's training split that its digest covers
_TOGETHER = 256  # documents tokenised in one call, which uses every core


def load(config: CorpusConfig) -> Corpus:
    """Load the corpus of a configuration.

    It is kept in memory, so a change of the text on disk is only seen by the next process.

    Raises:
        UserError: The text or the tokenizer can't be read, or there is too little text.
    """
    return _load(config)


@lru_cache(maxsize=4)
def _load(config: CorpusConfig) -> Corpus:
    text = source(config)
    folder = cache.folder(config.cache)
    if left_out := text.train.left_out:
        found = f"{len(left_out)} left out: {listed(left_out)}"
        warnings.warn(
            f"of the files and folders at corpus.path {config.path} {found}", stacklevel=3
        )
    tokens = tokenizer(config, text, folder)
    build = _whole
    if text.streams:
        build = _streamed
    corpus = build(config, text, tokens, folder)
    if min(corpus.validation.size, corpus.probe.size, corpus.test.size) < 2:
        raise UserError(
            f"expected text in the validation split of corpus {config.name}, found none; "
            "give a split with text"
        )
    return corpus


@lru_cache(maxsize=4)
def load_samples(config: CorpusConfig, tasks: TaskConfig) -> SampleCorpus:
    """Load the samples of a configuration; they are kept in memory.

    Raises:
        UserError: Samples or the tokenizer can't be read, or there are too few.
    """

    def found(text: Documents) -> Tokenizer:
        return tokenizer(config, Source(text), cache.folder(config.cache))

    return sample_corpus.load(config, tasks, found)


def identity(corpus: Corpus) -> str:
    """Return a digest of the tokens that a run trains on.

    It covers the digest of the corpus and, for a stream, the sizes of its files.
    """
    train = corpus.train
    if not isinstance(train, TokenStream):
        return corpus.digest
    return _digest(corpus.digest, *(str(size) for size in train.documents.sizes))


def source(config: CorpusConfig) -> Source:
    """Return the text of a configuration."""
    if config.name == "stdlib":
        return standard_library()
    if config.name == "text":
        return text_files(config.path)
    if config.name == "wikitext-103":
        return hub.wikitext(config.path)
    if config.name == "c4":
        return hub.c4(config.path)
    raise UserError(
        f"expected a corpus of running text, found corpus.name: {config.name}, which has samples "
        "of tasks; choose stdlib, text, wikitext-103 or c4 for this"
    )


def tokenizer(config: CorpusConfig, text: Source, folder: Path) -> Tokenizer:
    """Return the tokenizer of a configuration; a BPE is trained on the training part of `text`."""
    if config.tokenizer == "bytes":
        return Bytes()
    if config.tokenizer == "gpt2":
        return gpt2_tokens.load(config.tokenizer_path)
    return bpe.train(text.train, config.vocab_size, folder, streams=text.streams)


def _whole(config: CorpusConfig, text: Source, tokens: Tokenizer, folder: Path) -> Corpus:
    """Build a corpus whose text is tokenised as a whole."""
    array, digest = _tokenised(text.train, tokens, folder, config.max_tokens)
    if text.validation is None:
        train, *apart = interleaved(array, config.name)
    else:
        train = Split(array, ((0, len(array)),))
        other, other_digest = _tokenised(text.validation, tokens, folder, None)
        apart = [*held_out(other)]
        digest += other_digest
    digest = _digest(tokens.digest, digest, str(config.max_tokens))
    return _corpus(config, tokens, train, apart, array, digest)


def _streamed(config: CorpusConfig, text: Source, tokens: Tokenizer, folder: Path) -> Corpus:
    """Build a corpus whose training tokens are made on demand.

    Its digest covers the held-out text, the beginning of the training text and the names of its
    shards.
    """
    assert text.validation is not None, "a stream has a validation split of its own"
    array = _concatenated(text.validation, tokens, HELD_OUT)
    head = Survey.of(islice(iter(text.train), _HEAD))
    if not head.size:
        raise UserError(f"expected text in corpus {config.name}, found none; give a copy with text")
    held = xxhash.xxh3_128_hexdigest(array.tobytes())
    digest = _digest(tokens.digest, held, head.digest, *text.train.shards)
    stream = TokenStream(text.train, tokens, folder / f"{config.name}-{digest}", config.max_tokens)
    digest = _digest(digest, str(config.max_tokens))
    return _corpus(config, tokens, stream, held_out(array), array, digest)


def _corpus(
    config: CorpusConfig,
    tokens: Tokenizer,
    train: Split | Growing,
    apart: Sequence[Split],
    counted: IntArray,
    digest: str,
) -> Corpus:
    """Build a corpus; `apart` holds its parts for validation, probe and test."""
    validation, probe, test = apart
    artefacts = tokens.encode([ARTEFACTS.encode()])[0]
    rare = rarest(counted, tokens.vocab_size)
    return Corpus(
        name=config.name,
        train=train,
        validation=validation,
        probe=probe,
        test=test,
        vocab_size=tokens.vocab_size,
        digest=digest,
        rare=rare,
        artefacts=artefacts,
    )


def _tokenised(
    documents: Documents, tokens: Tokenizer, folder: Path, limit: int | None
) -> tuple[IntArray, str]:
    """Return the first `limit` tokens of a text, read-only, and the digest of the whole text.

    Tokens are cached on disk, except bytes, which are made again each time.
    """
    if isinstance(tokens, Bytes):
        return _as_bytes(documents, tokens.separator.tobytes(), limit)
    digest = Survey.of(iter(documents)).digest
    path = folder / f"tokens-{_digest(tokens.digest, digest, str(limit))}.bin"
    if cache.facts(path) is None:
        cache.write(path, _concatenated(documents, tokens, limit).tobytes())
    if not path.stat().st_size:
        return np.zeros(0, dtype(tokens.vocab_size)), digest
    return np.asarray(np.memmap(path, dtype(tokens.vocab_size), mode="r")), digest


def _as_bytes(documents: Documents, separator: bytes, limit: int | None) -> tuple[IntArray, str]:
    joined = bytearray()

    def joining() -> Iterator[bytes]:
        for document in documents:
            joined.extend(document)
            joined.extend(separator)
            yield document

    digest = Survey.of(joining()).digest
    tokens = np.frombuffer(joined, np.uint8)[:limit]
    tokens.flags.writeable = False
    return tokens, digest


def _concatenated(documents: Documents, tokens: Tokenizer, limit: int | None) -> IntArray:
    """Return the first `limit` tokens of a text, with the separator after each document."""
    parts = [np.zeros(0, dtype(tokens.vocab_size))]
    size = 0
    rows = iter(documents)
    while (limit is None or size < limit) and (together := list(islice(rows, _TOGETHER))):
        for part in tokens.encode(together):
            parts += [part, tokens.separator]
            size += len(part) + len(tokens.separator)
    return np.concatenate(parts)[:limit]


def _digest(*parts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())
