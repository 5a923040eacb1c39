"""GPT-2's own tokenizer (Radford et al. 2019), from a copy on disk or from the hub."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path

from trainenv.data.tokenizers import END_OF_TEXT, Subwords
from trainenv.tools.paths import expanded
from trainenv.types import UserError

REPOSITORIES = ("openai-community/gpt2", "gpt2")  # the name now, and the one in old caches


def load(path: Path | None) -> Subwords:
    """Load GPT-2's tokenizer from disk, or from the hub where `path` is None.

    The path is a tokenizer.json, a folder with one, or a folder with vocab.json and merges.txt.

    Raises:
        UserError: The tokenizer is not found.
    """
    if path is None:
        file = _from_hub()
        return Subwords(file.read_text(encoding="utf-8"), str(file))
    path = expanded(path)
    for file in (path, path / "tokenizer.json"):
        if isfile(file):
            return Subwords(file.read_text(encoding="utf-8", errors="replace"), str(file))
    vocabulary = path / "vocab.json"
    merges = path / "merges.txt"
    if isfile(vocabulary) and isfile(merges):
        return Subwords(_from_pair(vocabulary, merges), str(path))
    raise UserError(
        "expected a tokenizer.json, or a folder with one or with vocab.json and merges.txt, at "
        f"corpus.tokenizer_path {path}, found neither; give a path that exists or leave it out to "
        "load GPT-2's from the hub"
    )


def _from_pair(vocabulary: Path, merges: Path) -> str:
    """Convert GPT-2's two original files into the text of a tokenizer.json."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, pre_tokenizers

    try:
        rust = Rust(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the package raises bare Exception
        raise UserError(
            f"expected GPT-2's vocabulary at {vocabulary}, found {error}; download both files again"
        ) from None
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    if rust.token_to_id(END_OF_TEXT) is not None:
        rust.add_special_tokens([END_OF_TEXT])
    return str(rust.to_str())


def _from_hub() -> Path:
    """Return GPT-2's tokenizer.json in the hub's cache; download it if it is missing."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    # The cache is tried first: without a network, the hub's retries take half a minute.
    cached = (try_to_load_from_cache(name, "tokenizer.json") for name in REPOSITORIES)
    for file in cached:
        if isinstance(file, str):
            return Path(file)
    try:
        return Path(hf_hub_download(REPOSITORIES[0], "tokenizer.json"))
    except Exception as error:  # network, HTTP and cache errors come in many classes
        raise UserError(
            "expected GPT-2's tokenizer in the Hugging Face cache or on the hub, found neither "
            f"({type(error).__name__}); connect to the network, set corpus.tokenizer_path to a "
            "copy of tokenizer.json, or set corpus.tokenizer: bpe or bytes"
        ) from error
