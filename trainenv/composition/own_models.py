"""Models of a configuration of pairs that are trained here: cached, and resumed where interrupted.

    folders = train_models(PairsConfig.load("own"), Path("pairs"))     # name → folder

| in the folder | holds |
|---|---|
| `text/` | training text, one file a corpus |
| `runs/NAME/` | the run of a model, to resume from |
| `models/NAME/` | the model and its tokenizer, as transformers loads them |
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from trainenv import data
from trainenv.config.decoding import OwnModelConfig, PairsConfig
from trainenv.config.schema import RunConfig
from trainenv.data import prompt_texts
from trainenv.decoding.pretrained import quiet_transformers
from trainenv.loop import resume, train
from trainenv.records.run_folder import RunFolder
from trainenv.run import TrainingRun
from trainenv.tools.atomic_files import write_file
from trainenv.tools.disk_errors import as_user_error
from trainenv.types import Run, Telemetry, UserError

MADE = "trainenv_made.json"
"""File of a model's folder that records what it was trained with."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """State of the training of all models.

    Attributes:
        model: Name of the model that trains.
        step: Optimizer steps of it that are done.
        steps: Optimizer steps of it in all.
    """

    model: str
    step: int
    steps: int


Watch = Callable[[TrainingProgress], None]


def train_models(
    config: PairsConfig,
    folder: Path,
    *,
    watch: Watch = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Path]:
    """Train the models that are missing, and return the folder of each, by name.

    Args:
        config: Models, corpora and tokenizer.
        folder: Folder of the text, the runs and the models.
        watch: Function that gets the progress after each block of steps.
        stop: Function asked after each block; true ends the training, which can be resumed.

    Raises:
        UserError: The text can't be read, the disk is full, or `stop` was true.
    """
    with as_user_error(f"training models in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        texts = write_texts(config, folder / "text")
        return {
            name: _model(name, model, config, folder, texts, watch, stop)
            for name, model in config.models.items()
        }


def write_texts(config: PairsConfig, folder: Path) -> str:
    """Write the training text of all corpora, if it has changed, and return its digest."""
    digest = xxhash.xxh3_64()
    folder.mkdir(parents=True, exist_ok=True)
    for corpus in config.corpora:
        train_part, _ = prompt_texts.split(prompt_texts.documents(corpus.source, corpus.path))
        text = b"\n\n".join(train_part)
        digest.update(corpus.name.encode())
        digest.update(text)
        path = folder / f"{corpus.name}.txt"
        if not path.exists() or path.read_bytes() != text:
            write_file(path, text)
    return digest.hexdigest()


def run_config(name: str, model: OwnModelConfig, config: PairsConfig, folder: Path) -> RunConfig:
    """Return the configuration of the run that trains a model."""
    values: dict[str, Any] = {
        "name": name,
        "steps": model.steps,
        "batch_size": model.batch_size,
        "threads": 1,
        "device": config.device,
        "model": {
            "width": model.width,
            "layers": model.layers,
            "heads": model.heads,
            "context": config.context,
        },
        "corpus": {
            "name": "text",
            "path": folder / "text",
            "tokenizer": "bpe",
            "vocab_size": config.vocab_size,
            "cache": folder / "cache",
        },
        "optimizer": {"lr": model.lr},
        "schedule": {"warmup": max(1, min(100, model.steps // 10))},
        "validation": {"every": max(1, model.steps // 4), "sequences": 16},
        "checkpoints": {"every": 100, "keep_last": 1},
    }
    return RunConfig.load("tiny", values)


def _model(
    name: str,
    model: OwnModelConfig,
    config: PairsConfig,
    folder: Path,
    texts: str,
    watch: Watch,
    stop: Callable[[], bool],
) -> Path:
    """Return the folder of a model that was trained with this configuration."""
    path = folder / "models" / name
    settings = run_config(name, model, config, folder)
    made = {
        "model": model.model_dump(mode="json"),
        "context": config.context,
        "vocab_size": config.vocab_size,
        "text": texts,
    }
    if (path / MADE).exists() and json.loads((path / MADE).read_text()) == made:
        return path
    run = TrainingRun.from_config(settings)
    at = folder / "runs" / f"{name}-{xxhash.xxh3_64_hexdigest(json.dumps(made).encode())[:8]}"

    def seen(run: Run, window: Sequence[Telemetry]) -> None:
        watch(TrainingProgress(model=name, step=run.step, steps=model.steps))

    record: RunFolder | Path = at
    if at.exists() and not (at / "summary.json").exists():
        record, _ = resume(at, run)
    elif at.exists():
        shutil.rmtree(at)  # trained to the end, but the model was not written or was deleted
    at.parent.mkdir(parents=True, exist_ok=True)
    summary = train(run, record, watch=seen, stop=stop)
    if summary["ended"] == "interrupted":
        raise UserError(
            f"training of {name} was interrupted at step {run.step} of {model.steps}; call the "
            "same again to resume"
        )
    _export(run, settings, path, made)
    return path


def _export(run: TrainingRun, settings: RunConfig, path: Path, made: dict[str, Any]) -> None:
    """Write a model and its tokenizer as transformers loads them, whole or not at all."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from trainenv.data.tokenizers import END_OF_TEXT, Subwords

    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model: Any = run.model
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.use_cache = True
    with quiet_transformers():
        model.save_pretrained(temporary)
    tokens = data.tokenizer(
        settings.corpus, data.source(settings.corpus), settings.corpus.cache or path.parent
    )
    assert isinstance(tokens, Subwords)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokens.text), eos_token=END_OF_TEXT
    )
    tokenizer.save_pretrained(str(temporary))
    write_file(temporary / MADE, json.dumps(made, indent=1))
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
