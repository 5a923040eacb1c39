"""Model pairs of a configuration: loaded from folders or the hub, prompted, traced and calibrated.

    pair = load_pair(config.pairs[0], config, Path("pairs"))
    for path in record_traces(config, Path("pairs")): …

| in the folder | holds |
|---|---|
| `models/NAME/` | models that were trained here, see `trainenv.composition.own_models` |
| `traces/PAIR--CORPUS.trace` | the trace of a pair on a corpus |
| `costs/PAIR.json` | the cost model of a pair, measured on this machine |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from trainenv.config.decoding import PairConfig, PairsConfig, PromptsConfig, TraceConfig
from trainenv.data import prompt_texts
from trainenv.decoding.calibration import calibrate
from trainenv.decoding.clocks import TracedTask
from trainenv.decoding.contract import Sampling
from trainenv.decoding.drafters.causal import CausalDrafter
from trainenv.decoding.drafters.first_layers import shortened
from trainenv.decoding.pretrained import quiet_transformers
from trainenv.decoding.real_clock import Models
from trainenv.decoding.traces import CostModel, Origin, Trace, load_trace, save_trace
from trainenv.decoding.traces.file import SUFFIX, BrokenTrace, load_costs, save_costs
from trainenv.decoding.traces.record import Recorder, origin_of
from trainenv.decoding.vocabulary import check_same
from trainenv.tools.optional import require
from trainenv.tools.paths import expanded
from trainenv.types import UserError

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CALIBRATED = 4
"""Number of prompts that costs are measured on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Target and draft in memory.

    Attributes:
        name: Name of the pair.
        target_name: Name of the target.
        draft_name: Name of the draft.
        target: Target model, in evaluation mode.
        draft: Draft model, in evaluation mode.
        tokenizer: Tokenizer of both.
    """

    name: str
    target_name: str
    draft_name: str
    target: nn.Module = field(repr=False)
    draft: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def tokenizer_digest(self) -> str:
        """Hash of the vocabulary, 16 hex digits."""
        words = sorted(self.tokenizer.get_vocab().items())
        return xxhash.xxh3_64_hexdigest(repr(words).encode())

    def origin(
        self, prompts: Sequence[Sequence[int]], *, corpus: str, extent: TraceConfig
    ) -> Origin:
        """Return the origin of a trace of this pair.

        Args:
            prompts: Tokens of each prompt.
            corpus: Name of the corpus of the prompts.
            extent: Sampling and random seed of the trace.
        """
        return origin_of(
            self.target,
            self.draft,
            prompts,
            names=(self.target_name, self.draft_name),
            tokenizer_digest=self.tokenizer_digest,
            corpus=corpus,
            sampling=Sampling(temperature=extent.temperature, top_p=extent.top_p),
            seed=extent.seed,
        )

    def models(self, prompts: Sequence[Sequence[int]], sampling: Sampling | None = None) -> Models:
        """Return the models and prompts for the real clock."""
        return Models(
            target=self.target,
            drafter=CausalDrafter(model=self.draft),
            prompts=prompts,
            sampling=sampling or Sampling(),
        )


def load_pair(pair: PairConfig, config: PairsConfig, folder: Path) -> Pair:
    """Load the models of a pair.

    Args:
        pair: Pair to load.
        config: Configuration that it is of.
        folder: Folder with the models that were trained here.

    Raises:
        UserError: A model is not there, or the tokenizers differ.
    """
    target, tokenizer = load_model(pair.target, pair.target_gguf, config, folder)
    if pair.draft is None:
        assert pair.first_layers is not None
        draft = shortened(target, pair.first_layers)
        name = f"{pair.target}[:{pair.first_layers}]"
    else:
        name = pair.draft
        draft, other = load_model(pair.draft, None, config, folder)
        check_same(
            target=_vocabulary(target),
            draft=_vocabulary(draft),
            target_tokenizer=tokenizer,
            draft_tokenizer=other,
        )
    return Pair(
        name=pair.name,
        target_name=pair.target,
        draft_name=name,
        target=target,
        draft=draft,
        tokenizer=tokenizer,
    )


def prompts_of(
    corpus: PromptsConfig, tokenizer: Any, *, rows: int, length: int, seed: int = 0
) -> list[list[int]]:
    """Return prompts that are cut from the held-out documents of a corpus.

    Args:
        corpus: Corpus.
        tokenizer: Tokenizer of transformers.
        rows: Number of prompts.
        length: Tokens of each prompt.
        seed: Random seed of the documents and places.

    Raises:
        UserError: No document is long enough.
    """
    _, held_out = prompt_texts.split(prompt_texts.documents(corpus.source, corpus.path))
    generator = np.random.default_rng([seed, 3])
    order = generator.permutation(len(held_out))
    found: list[list[int]] = []
    # A document may serve again, from another place, if there are fewer of them than rows.
    for place in np.tile(order, 1 + rows // max(len(order), 1) * 4 + 4).tolist():
        text = held_out[place][:40_000].decode(errors="replace")
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) < length:
            continue
        start = int(generator.integers(len(tokens) - length + 1))
        found.append([int(token) for token in tokens[start : start + length]])
        if len(found) == rows:
            return found
    raise UserError(
        f"expected documents of at least {length} tokens in corpus {corpus.name}, found too few; "
        "lower trace.prompt or give a longer text"
    )


def recorder_of(extent: TraceConfig) -> Recorder:
    """Return the recorder of traces of an extent."""
    return Recorder(
        positions=extent.positions,
        depth=extent.depth,
        stride=extent.stride,
        top_k=extent.top_k,
        rows_at_once=extent.rows_at_once,
        seed=extent.seed,
    )


def trace_path(folder: Path, pair: str, corpus: str) -> Path:
    """Return the place of a trace in a folder of pairs."""
    return folder / "traces" / f"{pair}--{corpus}{SUFFIX}"


def costs_path(folder: Path, pair: str) -> Path:
    """Return the place of a cost model in a folder of pairs."""
    return folder / "costs" / f"{pair}.json"


def record_traces(
    config: PairsConfig,
    folder: Path,
    *,
    watch: Callable[[str, int, int], None] = lambda task, done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[TracedTask]:
    """Record the traces and costs that are missing, and return all tasks: pairs × corpora.

    A trace is written when it is whole, so an interrupted recording resumes with the next trace.

    Args:
        config: Pairs, corpora and extent of the traces.
        folder: Folder of models, traces and costs.
        watch: Function that gets the name of a task, its rows that are recorded, and all rows.
        stop: Function asked before each trace; true ends the recording.

    Raises:
        UserError: A model or a text is not there, the disk is full, or `stop` was true.
    """
    tasks = []
    for pair_config in config.pairs:
        pair = load_pair(pair_config, config, folder)
        for corpus in config.corpora:
            if stop():
                raise UserError(
                    "recording of traces was interrupted; call the same again to resume"
                )
            trace, prompts = _trace(pair, corpus, config, folder, watch)
            costs = _costs(pair, prompts, config, folder)
            name = f"{pair.name}--{corpus.name}"
            tasks.append(TracedTask(name=name, trace=trace, costs=costs))
    return tasks


def load_tasks(folder: str | Path) -> list[TracedTask]:
    """Load all traces of a folder of pairs with their costs.

    Raises:
        UserError: There is none, or one is damaged.
    """
    folder = expanded(folder)
    return [
        TracedTask(
            name=f"{pair}--{corpus}",
            trace=load_trace(path),
            costs=load_costs(costs_path(folder, pair)),
        )
        for pair, corpus, path in trace_files(folder)
    ]


def trace_files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield pair, corpus and file of each trace in a folder of pairs, in the order of their names.

    Raises:
        UserError: There is none.
    """
    paths = sorted((folder / "traces").glob(f"*--*{SUFFIX}"))
    if not paths:
        raise UserError(
            f"expected traces in {folder / 'traces'}, found none; record them with trainenv decode "
            "trace"
        )
    for path in paths:
        pair, _, corpus = path.name.removesuffix(SUFFIX).partition("--")
        yield pair, corpus, path


def _trace(
    pair: Pair,
    corpus: PromptsConfig,
    config: PairsConfig,
    folder: Path,
    watch: Callable[[str, int, int], None],
) -> tuple[Trace, list[list[int]]]:
    extent = config.trace
    prompts = prompts_of(
        corpus, pair.tokenizer, rows=extent.rows, length=extent.prompt, seed=extent.seed
    )
    origin = pair.origin(prompts, corpus=corpus.name, extent=extent)
    path = trace_path(folder, pair.name, corpus.name)
    recorder = recorder_of(extent)
    known = _known(path, origin, recorder)
    if known is None:
        name = f"{pair.name}--{corpus.name}"
        known = recorder.record(
            pair.target,
            pair.draft,
            prompts,
            origin=origin,
            progress=lambda done, total: watch(name, done, total),
        )
        save_trace(known, path)
    return known, prompts


def _known(path: Path, origin: Origin, recorder: Recorder) -> Trace | None:
    """Return the trace at a path if it is whole and of the same origin and extent."""
    if not path.exists():
        return None
    try:
        trace = load_trace(path)
    except BrokenTrace:
        return None
    extent = (trace.positions, trace.depth, trace.stride)
    if trace.origin != origin or extent != (recorder.positions, recorder.depth, recorder.stride):
        return None
    return trace


def _costs(
    pair: Pair, prompts: Sequence[Sequence[int]], config: PairsConfig, folder: Path
) -> CostModel:
    path = costs_path(folder, pair.name)
    if path.exists():
        return load_costs(path)
    sampling = Sampling(temperature=config.trace.temperature, top_p=config.trace.top_p)
    depth = config.trace.depth
    costs = calibrate(
        pair.models(prompts[:_CALIBRATED], sampling),
        depth=depth,
        max_new_tokens=max(depth + 2, min(48, config.trace.positions)),
    )
    save_costs(costs, path)
    return costs


def load_model(
    name: str, gguf: str | None, config: PairsConfig, folder: Path
) -> tuple[nn.Module, Any]:
    """Return a model in evaluation mode and its tokenizer, from a folder or from the hub.

    Args:
        name: Name of a model of the configuration, a folder, or a name on the hub.
        gguf: Name of a GGUF file in the folder that has its weights; None for the usual files.
        config: Configuration with the models that are trained here, device and precision.
        folder: Folder with the models that were trained here.

    Raises:
        UserError: The model is not there or can't be read.
    """
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    source = str(expanded(name))
    if name in config.models:
        source = str(folder / "models" / name)
        if not Path(source).is_dir():
            raise UserError(
                f"expected the model {name} in {source}, found none; train the models of the "
                "configuration first"
            )
    extra: dict[str, Any] = {}
    if gguf is not None:
        require("gguf", f"the model {name} in a GGUF file")
        extra["gguf_file"] = gguf
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=_PRECISIONS[config.precision], **extra
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    # Errors of network, HTTP, cache and format have many classes in three libraries.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"expected the model {name} in a folder or on the Hugging Face hub, found "
            f"{reason:.300}; give a folder that has it, or connect to the network"
        ) from error
    return model.to(_device(config)).eval(), tokenizer


def _device(config: PairsConfig) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.vocab_size)
