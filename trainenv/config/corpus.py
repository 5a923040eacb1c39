"""Keys of the section `corpus`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainenv.config.section import Config, Count
from trainenv.tools.paths import absolute

CORPUS_PATHS = ("path", "tokenizer_path", "cache")
_PATHLESS = ("stdlib", "tasks")  # corpora that are made here


class CorpusConfig(Config):
    """Source of the text, and its tokens.

    Paths are kept absolute, so that a recorded configuration means the same files wherever it is
    read: `~` is the home folder, and a relative path starts from the current folder, also in a YAML
    file.
    """

    name: Literal["stdlib", "text", "wikitext-103", "c4", "tasks", "code-contests"] = Field(
        default="stdlib",
        description="Source of the text: `stdlib` is the source code of Python's standard library,"
        " `text` reads `corpus.path`; `wikitext-103` and `c4` (streamed) come from the hub, or from"
        " a local copy at `corpus.path`, through the package `datasets`. `tasks` generates small"
        " tasks with right and wrong solutions, and `code-contests` reads such samples from the hub"
        " or from `corpus.path`; see the section `tasks`.",
    )
    path: Path | None = Field(
        default=None,
        description="UTF-8 text file, or folder whose text files are all read; needed by `text`."
        " For `wikitext-103`, `c4` and `code-contests` it is the local copy.",
    )
    tokenizer: Literal["bytes", "bpe", "gpt2"] = Field(
        default="bytes",
        description="Tokens. `bytes` has one token per byte, `bpe` trains a byte-pair encoding on"
        " the text, `gpt2` uses the tokenizer of GPT-2.",
    )
    tokenizer_path: Path | None = Field(
        default=None,
        description="GPT-2's tokenizer for `gpt2`: a `tokenizer.json`, or a folder with one. By"
        " default it is loaded from the hub.",
    )
    vocab_size: Annotated[int, Field(ge=257)] = Field(
        default=4096,
        description="Vocabulary that `bpe` is trained to, in tokens, at least 257. The other"
        " tokenizers ignore it.",
    )
    max_tokens: Count | None = Field(
        default=None,
        description="Largest number of training tokens to use, at least 1. By default all of them.",
    )
    cache: Path | None = Field(
        default=None,
        description="Folder for tokens and trained tokenizers. By default it is"
        " `$TRAINENV_CACHE`, or `~/.cache/trainenv` where that is not set.",
    )

    @property
    def has_samples(self) -> bool:
        """True if it has samples of tasks instead of running text."""
        return self.name in ("tasks", "code-contests")

    @field_validator(*CORPUS_PATHS, mode="before")
    @classmethod
    def _no_empty_path(cls, value: Any) -> Any:
        """Refuse an empty path, which would be the current folder."""
        if value == "":
            raise ValueError("expected a path, found an empty one; give one or leave it out")
        return value

    @field_validator(*CORPUS_PATHS)
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        return absolute(value)

    @model_validator(mode="after")
    def _reads_its_path(self) -> CorpusConfig:
        if self.path is not None and self.name in _PATHLESS:
            raise ValueError(
                f"path is read by text, wikitext-103, c4 and code-contests, found name: {self.name}"
                " with a path; set corpus.name too, to text for files of your own, or leave path"
                " out"
            )
        return self


def with_whole_paths(corpus: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `CorpusConfig` with absolute paths, to record before validation."""
    paths = {
        key: corpus[key]
        for key in CORPUS_PATHS
        if isinstance(corpus.get(key), str | Path) and corpus[key] != ""
    }
    return {**corpus, **{key: str(absolute(path)) for key, path in paths.items()}}
