"""Evaluation of a finished run on tasks: exact match, pass@k, errors by token, and drafting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv import data
from trainenv.compare.wmtp.preset import EvaluationSettings
from trainenv.compare.wmtp.td_errors import td_errors_of
from trainenv.config.schema import RunConfig
from trainenv.data.tasks.sample_corpus import SampleCorpus
from trainenv.data.tokenizers import Bytes
from trainenv.decoding import (
    Decoder,
    HeadsDrafter,
    PromptLookup,
    Sampling,
    Settings,
    TargetCall,
)
from trainenv.evaluation import Codec, Sampler, Sandbox, evaluate, human_eval, token_errors
from trainenv.run import TrainingRun
from trainenv.tools.json_lines import plain
from trainenv.types import IGNORED, UserError

EVALUATION = "evaluation.json"
_ROWS = 64  # samples of one forward pass
_CLASSES = 4  # of the difficulty of a token
_NEVER = Settings(fallback_threshold=2.0)  # ends each draft before its first token


def evaluate_run(
    run: TrainingRun,
    settings: EvaluationSettings,
    *,
    reference: nn.Module | None = None,
    sandbox: Sandbox | None = None,
) -> dict[str, Any]:
    """Evaluate the model of a run on the test tasks of its corpus.

    Args:
        run: Run on the corpus `tasks`; unchanged.
        settings: Settings of the evaluation.
        reference: Model whose loss is the difficulty of a token; None for the rarity of the token
            among solutions.
        sandbox: Isolation of generated programs; with one, HumanEval is evaluated too.

    Returns:
        JSON values: `exact_match`, `pass_at`, `problems`, `errors` (losses and errors by head and
        difficulty), `td_errors` (None without a value head), `drafting`, and `human_eval` with a
        sandbox.

    Raises:
        UserError: The run has no tasks that can be verified.
    """
    config = run.config
    assert isinstance(config, RunConfig)
    corpus = _corpus(config)
    tokenizer = Bytes()
    tasks = corpus.test_tasks[: settings.tasks]
    sampler = _sampler(settings)
    found = evaluate(run.model, tokenizer, tasks, sampler=sampler, ks=settings.ks)
    record: dict[str, Any] = {**found.record(), "settings": asdict(settings)}
    record["errors"] = errors_by_token(run.model, corpus, config.model.context, reference)
    weighting = getattr(run.objective, "weighting", None)
    record["td_errors"] = td_errors_of(run.model, corpus, config.model.context, weighting)
    record["drafting"] = None
    if settings.drafts and getattr(getattr(run.model, "future_heads", None), "count", 1) > 1:
        prompts = [task.prompt for task in tasks[: settings.drafts]]
        record["drafting"] = drafting(run.model, tokenizer, prompts, corpus.end, settings)
    if sandbox is not None:
        programs = evaluate(
            run.model, tokenizer, human_eval(), sampler=sampler, ks=settings.ks, sandbox=sandbox
        )
        record["human_eval"] = programs.record()
    result = plain(record)
    assert isinstance(result, dict)
    return result


def _sampler(settings: EvaluationSettings) -> Sampler:
    return Sampler(
        samples=settings.samples,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )


def _corpus(config: RunConfig) -> SampleCorpus:
    if config.corpus.name != "tasks" or config.corpus.tokenizer != "bytes":
        raise UserError(
            "an evaluation needs a run on bytes of tasks that are generated, found corpus.name: "
            f"{config.corpus.name} with the tokenizer {config.corpus.tokenizer}; train with "
            "corpus.name=tasks, or call trainenv.evaluation.evaluate with your own tasks"
        )
    return data.load_samples(config.corpus, config.tasks)


@torch.no_grad()
def errors_by_token(
    model: nn.Module, corpus: SampleCorpus, context: int, reference: nn.Module | None
) -> dict[str, Any]:
    """Return losses and errors of each head by the difficulty of the token, as JSON values.

    Args:
        model: Model, with future heads or without.
        corpus: Corpus whose test part is read.
        context: Number of inputs of a row.
        reference: Model whose loss is the difficulty; None for the rarity of the token.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    losses: list[Tensor] = []
    right: list[Tensor] = []
    difficulty: list[Tensor] = []
    try:
        fitting = corpus.test.fitting(context)
        for start in range(0, len(fitting), _ROWS):
            batch = corpus.test.micro_batch(fitting[start : start + _ROWS], context)
            tokens = batch["tokens"].to(next(model.parameters()).device)
            labels = batch["labels"].to(tokens.device)
            loss, hits = _by_head(model, tokens, labels)
            chosen = labels[:, 1:] != IGNORED
            losses.append(loss[:, chosen])
            right.append(hits[:, chosen])
            if reference is None:
                difficulty.append(_rarity(corpus)[tokens[:, 1:][chosen].cpu()])
            else:
                known, _ = _by_head(reference.eval(), tokens, labels, heads=1)
                difficulty.append(known[0, chosen])
    finally:
        for module, was in training.items():
            module.training = was
    return {
        "difficulty": "rarity of the token" if reference is None else "loss of the reference",
        **token_errors(
            torch.cat(losses, dim=1).float().cpu().numpy(),
            torch.cat(difficulty).float().cpu().numpy(),
            right=torch.cat(right, dim=1).float().cpu().numpy(),
            classes=_CLASSES,
        ).record(),
    }


def _by_head(
    model: nn.Module, tokens: Tensor, labels: Tensor, heads: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return loss and hit of each head for each target, [heads, B, T]; NaN without a prediction."""
    inputs = tokens[:, :-1]
    wanted = labels[:, 1:]
    further: Any = getattr(model, "future_heads", None)
    count = heads
    if count is None:
        count = int(getattr(further, "count", 1))
    shape = (count, *wanted.shape)
    losses = torch.full(shape, math.nan, device=tokens.device)
    hits = torch.full(shape, math.nan, device=tokens.device)
    trunk = None
    if count > 1:
        trunk = further.trunk(model, inputs)
    for head in range(count):
        if trunk is None:
            logits = model(inputs).logits
        else:
            logits = further.logits(model, head, trunk.hidden, trunk.before, trunk)
        target = wanted[:, head:]
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), reduction="none", ignore_index=IGNORED
        )
        losses[head, :, head:] = loss.view(target.shape)
        hits[head, :, head:] = (logits.argmax(dim=-1) == target).float()
    return losses, hits


def _rarity(corpus: SampleCorpus) -> Tensor:
    """Return −ln of the share of each token among the solutions that are trained, [V]."""
    counts = np.ones(corpus.vocab_size)
    for tokens, prompt in zip(corpus.train.tokens, corpus.train.prompts, strict=True):
        np.add.at(counts, tokens[prompt:].astype(np.int64), 1)
    return torch.from_numpy(-np.log(counts / counts.sum()))


def drafting(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    end: int,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """Measure drafting by the model's own heads, verified by an exact rule, a row at a time.

    Args:
        model: Model with further heads.
        tokenizer: Tokenizer of the model.
        prompts: Texts to continue.
        end: Token that ends a text.
        settings: Settings of sampling.

    Returns:
        `acceptance` (share of the drafted tokens that stayed), `tokens_per_call` (tokens a call of
        the target; 1 without drafts), `speed_up` (time without drafts ÷ time with), `tokens`,
        `by_place`, the share of drafted tokens of head 1, 2, … that stayed, and `same_texts`, the
        share of texts that are the same without drafts: 1 but for rounding at temperature 0.
    """
    heads: Any = model.future_heads
    training = model.training
    model.eval()
    try:
        how = Sampling(temperature=settings.temperature, top_p=settings.top_p)
        drafted = Decoder(
            target=model,
            drafter=HeadsDrafter(model=model),
            settings=Settings(k=heads.count - 1, fallback_threshold=0.0),
            sampling=how,
        )
        plain_ = Decoder(target=model, drafter=PromptLookup(), settings=_NEVER, sampling=how)
        rows = [Codec.of(tokenizer).encode(prompt) for prompt in prompts]
        positions = getattr(model.config, "max_position_embeddings", None)
        calls: list[TargetCall] = []
        seconds = [0.0, 0.0]
        tokens = [0, 0]
        same: list[bool] = []
        for seed, row in enumerate(rows):
            room = settings.max_tokens
            if positions is not None:
                room = min(room, positions - len(row))
            if room < 1:
                continue
            texts = set()
            for place, decoder in enumerate((plain_, drafted)):
                started = perf_counter()
                made = decoder.generate([row], max_new_tokens=room, end_tokens=[end], seed=seed)
                seconds[place] += perf_counter() - started
                tokens[place] += made.tokens
                texts.add(made.new_tokens)
            same.append(len(texts) == 1)
            calls += made.calls
    finally:
        model.train(training)
    places = range(heads.count - 1)
    tried = [sum(call.drafted[0] > place for call in calls) for place in places]
    stayed = [sum(call.accepted[0] > place for call in calls) for place in places]
    each = [_ratio(spent, made) for spent, made in zip(seconds, tokens, strict=True)]
    return {
        "acceptance": _ratio(sum(stayed), sum(tried)),
        "tokens_per_call": _ratio(tokens[1], len(calls)),
        "speed_up": _ratio(each[0], each[1]),
        "tokens": tokens[1],
        "by_place": [_ratio(ours, all_) for ours, all_ in zip(stayed, tried, strict=True)],
        "same_texts": _ratio(sum(same), len(same)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def read_run(folder: Path) -> TrainingRun:
    """Return the finished run in a folder, with the weights that it ended with.

    Raises:
        UserError: There is no run, or it has not ended.
    """
    from trainenv.checkpoints.store import CheckpointStore

    if not (folder / "config.yaml").is_file() or not (folder / "summary.json").is_file():
        raise UserError(
            f"expected a run that has ended in {folder}, found none; train one with "
            "`trainenv wmtp train`"
        )
    run = TrainingRun.from_config(RunConfig.load(folder / "config.yaml"))
    run.restore(CheckpointStore(folder / "checkpoints").load())
    return run
