"""Traces and costs of model pairs: models are loaded, prompts are cut, and both are measured.

    record_traces(PairsConfig.load("own"), Path("pairs"))      # what is missing, into the folder
    trace, costs = measure(load("target", "draft"), documents, extent, seconds=60.0)

| in the folder | holds |
|---|---|
| `traces/PAIR--CORPUS.trace` | the trace of a pair on a corpus |
| `costs/PAIR.json` | the cost model of a pair, on this machine |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainenv.agents.thresholds.sources import costs_path, trace_path
from trainenv.config.decoding import PairConfig, PairsConfig, TraceConfig
from trainenv.data import prompt_texts
from trainenv.decoding.calibration import calibrate
from trainenv.decoding.contract import Sampling
from trainenv.decoding.drafters.causal import CausalDrafter
from trainenv.decoding.drafters.first_layers import shortened
from trainenv.decoding.real_clock import Models
from trainenv.decoding.traces import CostModel, Trace
from trainenv.decoding.traces.file import load_costs, load_trace, save_costs, save_trace
from trainenv.decoding.traces.record import Recorder, origin_of
from trainenv.decoding.vocabulary import check_same
from trainenv.types import UserError

_TIMED = 4  # prompts that the costs are measured on
_AT_ONCE = 4  # texts recorded between two looks at the clock
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Watch = Callable[[int, int, str], None]
"""Function of the traces done, their number, and the name of the next."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPair:
    """A model pair in memory.

    Attributes:
        names: Names of the target and of the draft.
        target: Target model.
        draft: Draft model.
        tokenizer: Tokenizer of the target.
    """

    names: tuple[str, str]
    target: nn.Module = field(repr=False)
    draft: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)


def load(
    target: str,
    draft: str | None,
    *,
    first_layers: int | None = None,
    gguf: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> LoadedPair:
    """Load two models of transformers, from folders or the hub.

    Args:
        target: Folder or name of the target.
        draft: Folder or name of the draft; None for the target's first layers.
        first_layers: Number of the target's first layers that draft.
        gguf: Name of a GGUF file in the target's folder that has its weights.
        device: `auto`, `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16`.

    Raises:
        UserError: A model can't be loaded, or the tokenizers differ.
    """
    place = device
    if device == "auto":
        place = "cuda" if torch.cuda.is_available() else "cpu"
    big, tokenizer = _model(target, gguf, place, precision)
    if draft is None:
        small = shortened(big, first_layers or 1)
        return LoadedPair(
            names=(target, f"first {first_layers} layers"),
            target=big,
            draft=small,
            tokenizer=tokenizer,
        )
    small, other = _model(draft, None, place, precision)
    check_same(
        target=int(big.config.vocab_size),
        draft=int(small.config.vocab_size),
        target_tokenizer=tokenizer,
        draft_tokenizer=other,
    )
    return LoadedPair(names=(target, draft), target=big, draft=small, tokenizer=tokenizer)


def record_traces(
    config: PairsConfig,
    folder: Path,
    *,
    watch: Watch = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Record the traces and costs that the folder lacks; return False if it was stopped.

    Args:
        config: Pairs, corpora and the extent of the traces.
        folder: Folder of the models that are trained here, and of the result.
        watch: Function that gets the progress.
        stop: Function to call before each trace; True ends the recording.

    Raises:
        UserError: A model or a text can't be read, a trace in the folder is of another pair, or the
            disk is full.
    """
    total = len(config.pairs) * len(config.corpora)
    for number, pair in enumerate(config.pairs):
        if stop():
            return False
        watch(number * len(config.corpora), total, pair.name)
        loaded = _loaded(config, pair, folder)
        for place, corpus in enumerate(config.corpora):
            if stop():
                return False
            watch(number * len(config.corpora) + place, total, f"{pair.name} on {corpus.name}")
            _, held_out = prompt_texts.split(prompt_texts.documents(corpus.source, corpus.path))
            prompts = cut_prompts(loaded, held_out, config.trace, config.trace.rows)
            origin = _origin(loaded, prompts, corpus.name, config.trace)
            path = trace_path(folder, pair.name, corpus.name)
            if path.exists():
                load_trace(path, expected=origin)
            else:
                recorder = _recorder(config.trace)
                trace = recorder.record(loaded.target, loaded.draft, prompts, origin=origin)
                save_trace(trace, path)
            costs = costs_path(folder, pair.name)
            if costs.exists():
                load_costs(costs)
            else:
                save_costs(timed(loaded, prompts, config.trace), costs)
    watch(total, total, "")
    return True


def measure(
    loaded: LoadedPair,
    documents: Sequence[bytes],
    extent: TraceConfig,
    *,
    corpus: str,
    seconds: float,
) -> tuple[Trace, CostModel]:
    """Time a pair, and record texts until a time has passed or `extent.rows` are there.

    Args:
        loaded: Model pair.
        documents: Documents that prompts are cut from, UTF-8.
        extent: Extent of the trace.
        corpus: Name of the corpus.
        seconds: Time after which no more texts are begun; two groups are always recorded.
    """
    started = time.perf_counter()
    prompts = cut_prompts(loaded, documents, extent, extent.rows)
    costs = timed(loaded, prompts, extent)
    origin = _origin(loaded, prompts, corpus, extent)
    parts: list[Trace] = []
    for first in range(0, len(prompts), _AT_ONCE):
        if len(parts) >= 2 and time.perf_counter() - started > seconds:
            break
        recorder = _recorder(extent, seed=extent.seed + first)
        group = prompts[first : first + _AT_ONCE]
        parts.append(recorder.record(loaded.target, loaded.draft, group, origin=origin))
    return Trace.joined(parts), costs


def timed(loaded: LoadedPair, prompts: Sequence[Sequence[int]], extent: TraceConfig) -> CostModel:
    """Return the cost model of a pair on this machine."""
    models = Models(
        target=loaded.target,
        drafter=CausalDrafter(model=loaded.draft),
        prompts=prompts[:_TIMED],
        sampling=Sampling(temperature=extent.temperature, top_p=extent.top_p),
    )
    return calibrate(models)


def cut_prompts(
    loaded: LoadedPair, documents: Sequence[bytes], extent: TraceConfig, rows: int
) -> list[list[int]]:
    """Return prompts of equal length from the documents, one a document at a random place.

    Raises:
        UserError: There is too little text.
    """
    generator = np.random.default_rng([extent.seed, 7])
    found: list[list[int]] = []
    order = generator.permutation(len(documents))
    for place in np.tile(order, 1 + rows // max(len(order), 1) * 4):
        if len(found) == rows:
            break
        text = documents[int(place)].decode(errors="replace")
        tokens = loaded.tokenizer.encode(text[:20_000], add_special_tokens=False)
        if len(tokens) >= extent.prompt:
            start = int(generator.integers(len(tokens) - extent.prompt + 1))
            found.append([int(token) for token in tokens[start : start + extent.prompt]])
    if len(found) < min(rows, 2 * _AT_ONCE):
        raise UserError(
            f"expected text for {rows} prompts of {extent.prompt} tokens, found {len(found)}; "
            "give a longer text, or shorter prompts"
        )
    return found


def _loaded(config: PairsConfig, pair: PairConfig, folder: Path) -> LoadedPair:
    """Return the models of a pair; those that are trained here lie in the folder."""

    def place(name: str) -> str:
        if name not in config.models:
            return name
        path = folder / "models" / name
        if not path.is_dir():
            raise UserError(
                f"expected the model {name} in {path}, found none; "
                "train it with trainenv decode train-pairs"
            )
        return str(path)

    loaded = load(
        place(pair.target),
        None if pair.draft is None else place(pair.draft),
        first_layers=pair.first_layers,
        gguf=pair.target_gguf,
        device=config.device,
        precision=config.precision,
    )
    draft = pair.draft or f"first {pair.first_layers} layers"
    return LoadedPair(
        names=(pair.target, draft),
        target=loaded.target,
        draft=loaded.draft,
        tokenizer=loaded.tokenizer,
    )


def _model(name: str, gguf: str | None, device: str, precision: str) -> tuple[Any, Any]:
    """Return a model of transformers in evaluation mode, and its tokenizer."""
    from transformers.models.auto import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {}
    if gguf is not None:
        options["gguf_file"] = gguf
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=_DTYPES[precision], **options)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"expected a causal language model of transformers in {name!r}, found none that "
            f"loads ({reason:.160}); give a folder, or a name on the hub"
        ) from None
    return model.to(device).eval(), tokenizer


def _recorder(extent: TraceConfig, seed: int | None = None) -> Recorder:
    return Recorder(
        positions=extent.positions,
        depth=extent.depth,
        stride=extent.stride,
        top_k=extent.top_k,
        rows_at_once=extent.rows_at_once,
        seed=extent.seed if seed is None else seed,
    )


def _origin(
    loaded: LoadedPair, prompts: Sequence[Sequence[int]], corpus: str, extent: TraceConfig
) -> Any:
    from hashlib import sha256

    vocabulary = sorted(loaded.tokenizer.get_vocab().items())
    return origin_of(
        loaded.target,
        loaded.draft,
        prompts,
        names=loaded.names,
        tokenizer_digest=sha256(repr(vocabulary).encode()).hexdigest()[:16],
        corpus=corpus,
        sampling=Sampling(temperature=extent.temperature, top_p=extent.top_p),
        seed=extent.seed,
    )
