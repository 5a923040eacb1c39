"""WikiText-103, C4 and LAMBADA, from the hub through `datasets` or from a local copy.

WikiText: Merity et al. 2016, `Salesforce/wikitext`. C4: Raffel et al. 2020, `allenai/c4`. LAMBADA:
Paperno et al. 2016, in the version of `EleutherAI/lambada_openai`, for evaluation only. C4 is
read shard by shard in its own order, because a stream that is shuffled while it is read does not
resume exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from os.path import isfile
from pathlib import Path
from types import ModuleType
from typing import Any

from trainenv.data import local
from trainenv.data.documents import Documents, Source
from trainenv.tools.optional import require
from trainenv.tools.paths import expanded
from trainenv.types import UserError

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_CONFIG = "wikitext-103-raw-v1"
C4 = "allenai/c4"
C4_CONFIG = "en"
C4_TRAIN = tuple(f"c4-train.{shard:05d}-of-01024.json.gz" for shard in range(1024))
C4_VALIDATION = tuple(f"c4-validation.{shard:05d}-of-00008.json.gz" for shard in range(8))


LAMBADA = "EleutherAI/lambada_openai"
LAMBADA_CONFIG = "en"


def wikitext(path: Path | None) -> Source:
    """Read WikiText-103 raw: one document an article, with its own validation split if present."""
    if path is None:
        parts = [_hub_split(WIKITEXT, WIKITEXT_CONFIG, split) for split in ("train", "validation")]
    else:
        parts = _local_copy(expanded(path), WIKITEXT_CONFIG)
    train, *validation = (
        Documents((str(place),), partial(_articles, part), part.left_out)
        for place, part in enumerate(parts)
    )
    return Source(train, next(iter(validation), None))


def c4(path: Path | None) -> Source:
    """Read C4's English part as a stream: one document a page, shard after shard.

    Raises:
        UserError: A local copy has no validation split; a stream can't be split here.
    """
    if path is None:
        train, validation = (
            Documents(names, partial(_hub_shard, names)) for names in (C4_TRAIN, C4_VALIDATION)
        )
        return Source(train, validation, streams=True)
    parts = _local_copy(expanded(path), C4_CONFIG)
    if len(parts) == 1:
        raise UserError(
            f"expected a validation split of C4 at corpus.path {path}, found only training files; "
            f"put {C4_VALIDATION[0]} next to them, or read the files as corpus.name: text"
        )
    return Source(parts[0], parts[1], streams=True)


def lambada(path: Path | None) -> Documents:
    """Read the passages of LAMBADA, one document each; a local copy has one a line."""
    if path is None:
        return _hub_split(LAMBADA, LAMBADA_CONFIG, "test")
    path = expanded(path)
    if not isfile(path):
        raise UserError(
            f"expected a file of LAMBADA at {path}, found none; give a .jsonl, .parquet or .txt"
        )
    return local.documents([path])


def _local_copy(path: Path, config: str) -> list[Documents]:
    """Read the training rows and, if present, the validation rows of a copy on disk."""
    if isfile(path / "dataset_dict.json") or isfile(path / "state.json"):
        return _saved(path)
    train, validation, left_out = local.find(path, config)
    return [local.documents(files, left_out) for files in (train, validation) if files]


def _saved(path: Path) -> list[Documents]:
    """Read a folder written by `save_to_disk`."""
    datasets = _datasets()
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises errors of Arrow and JSON, and its own
        raise UserError(
            f"expected a folder written by save_to_disk at {path}, found {_reason(error)}; "
            "save it again"
        ) from None
    if isinstance(saved, datasets.Dataset):
        saved = {"train": saved}
    parts = dict(saved)
    if "train" not in parts:
        raise UserError(
            f"expected a split `train` at {path}, found {', '.join(parts)}; "
            "save the data set with it"
        )
    return [_table(parts[split], split) for split in ("train", "validation") if split in parts]


def _table(rows: Any, split: str) -> Documents:
    if "text" not in rows.column_names:
        raise UserError(
            f"expected a column `text` in split {split}, found {', '.join(rows.column_names)}; "
            "rename the column that holds the text"
        )
    return Documents((split,), partial(_table_rows, rows))


def _table_rows(rows: Any, shard: int) -> Iterator[bytes]:
    for batch in rows.iter(batch_size=4096):
        for text in batch["text"]:
            yield text.encode()


def _hub_split(repository: str, config: str, split: str) -> Documents:
    datasets = _datasets()
    with _hub_errors(repository), _quiet(datasets):
        return _table(datasets.load_dataset(repository, config, split=split), split)


def _hub_shard(names: tuple[str, ...], shard: int) -> Iterator[bytes]:
    datasets = _datasets()
    with _hub_errors(C4):
        files = {"train": f"{C4_CONFIG}/{names[shard]}"}
        for row in datasets.load_dataset(C4, data_files=files, split="train", streaming=True):
            yield row["text"].encode()


def _articles(rows: Documents, shard: int) -> Iterator[bytes]:
    """Join rows (lines) into articles, which begin at titles such as ` = Title = `.

    Blank rows are dropped, because the hub and the raw files differ in them.
    """
    lines: list[bytes] = []
    for row in rows:
        line = row.rstrip(b"\r\n") + b"\n"
        if line.isspace():
            continue
        if (
            lines
            and line.startswith(b" = ")
            and not line.startswith(b" = = ")
            and line.rstrip().endswith(b" =")
        ):
            yield b"".join(lines)
            lines = []
        lines.append(line)
    if lines:
        yield b"".join(lines)


def _datasets() -> ModuleType:
    require("datasets", "this corpus")
    import datasets

    module: ModuleType = datasets
    return module


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # Errors of network, HTTP, cache and format have many classes in three libraries.
    except Exception as error:
        raise UserError(
            f"expected to read {repository} from the Hugging Face hub, found {_reason(error)}; "
            "connect to the network, or set corpus.path to a local copy"
        ) from error


@contextmanager
def _quiet(datasets: ModuleType) -> Iterator[None]:
    """Switch progress bars off inside the block, then restore the setting."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
