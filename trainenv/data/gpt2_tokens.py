"""GPT-2's own tokenizer (Radford et al. 2019), from a copy on disk or from the hub."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path

from trainenv.data.tokenizers import END_OF_TEXT, Subwords
from trainenv.tools.paths import expanded
from trainenv.types import UserError

REPOSITORIES = (
    "openai-community/gpt2",
    "gpt2",
)  # the present and the former name, which old caches have


def load(path: Path | None) -> Subwords:
    """GPT-2's tokenizer from a tokenizer.json, a folder with one (or with vocab.json and merges.txt), or the hub.

    Raises:
        UserError: none of them is there.
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
        f"expected a tokenizer.json, or a folder with one or with vocab.json and merges.txt, at corpus.tokenizer_path {path}, "
        "found neither; give a path that exists or leave it out to load GPT-2's from the hub"
    )


def _from_pair(vocabulary: Path, merges: Path) -> str:
    """GPT-2's own two files as one tokenizer.json."""
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
    """GPT-2's tokenizer.json in the hub's cache, downloaded where it is not there yet."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    # Looking into the cache first spares those without a network half a minute of retries.
    cached = (try_to_load_from_cache(name, "tokenizer.json") for name in REPOSITORIES)
    for file in cached:
        if isinstance(file, str):
            return Path(file)
    try:
        return Path(hf_hub_download(REPOSITORIES[0], "tokenizer.json"))
    except Exception as error:  # network, HTTP and cache errors come in many classes
        raise UserError(
            f"expected GPT-2's tokenizer in the Hugging Face cache or on the hub, found neither ({type(error).__name__}); "
            "connect to the network, set corpus.tokenizer_path to a copy of tokenizer.json, or set corpus.tokenizer: bpe or bytes"
        ) from error
