"""Distillation of a draft from a target, resumable at any moment.

    draft = distill(target, tokenizer, documents, Distillation(layers=3), Path("runs/draft"))

First the target reads and writes texts, shard by shard; then the student learns its distributions
(Hinton 2015, arXiv:1503.02531; for drafts Zhou 2024, DistillSpec, arXiv:2310.08461). The loss is
the cross-entropy with the target's most likely tokens and the mass of all others.

| in the folder | holds |
|---|---|
| `shards/` | texts with the target's distributions; the first is held out |
| `state.tensors` | student and optimizer, to resume from |
| `draft/` | the draft and its tokenizer, as transformers loads them |
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from trainenv.decoding.distillation.shards import Shard, read_pieces, sample_texts
from trainenv.decoding.distillation.student import freeze_embeddings, student_of
from trainenv.decoding.pretrained import quiet_transformers
from trainenv.tools.atomic_files import write_json
from trainenv.tools.checks import choice, number, whole
from trainenv.tools.disk_errors import as_user_error
from trainenv.tools.tensor_file.arrays import ArrayFormat
from trainenv.tools.tensor_file.chunks import BrokenFile, Kind
from trainenv.types import UserError

SHARD = "shard"
"""Name of the first part of a distillation, for its progress."""
MADE = "trainenv_made.json"
"""File of a draft's folder that records what it was distilled with."""


class BrokenState(BrokenFile):
    """A state of a distillation that is torn, damaged or of another format."""


_FORMAT = ArrayFormat(kind=Kind(name="distillation state", broken=BrokenState), version=1)
_WARMUP = 0.1  # share of the steps in which the rate rises


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Choices of a distillation.

    Args:
        layers: Blocks of the student.
        shards: Shards to learn from; one more is held out.
        rows: Texts of a shard.
        length: Tokens of a text.
        prompt: Tokens of a prompt that the target continues.
        steps: Optimizer steps.
        batch: Texts of a step.
        lr: Largest learning rate of AdamW.
        top_k: Probabilities kept of each distribution of the target.
        save_every: Steps between two saved states.
        precision: `bf16` computes in bfloat16 where it is safe, faster on processors that have it.
        seed: Random seed.

    Raises:
        UserError: A number is out of range.
    """

    layers: int = 3
    shards: int = 48
    rows: int = 8
    length: int = 128
    prompt: int = 32
    steps: int = 300
    batch: int = 8
    lr: float = 1e-3
    top_k: int = 32
    save_every: int = 50
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "shards", "rows", "prompt", "steps", "batch", "top_k", "save_every"):
            whole(name, getattr(self, name), least=1)
        whole("length", self.length, least=self.prompt + 1)
        number("lr", self.lr, above=0)
        choice("precision", self.precision, ("fp32", "bf16"))

    def computing(self) -> AbstractContextManager[Any]:
        """Return the context in which models are called."""
        if self.precision == "bf16":
            return torch.autocast("cpu", torch.bfloat16)
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """Result of a distillation.

    Attributes:
        draft: The draft, in evaluation mode.
        overlap_before: Mean of Σ min(p, q) over the target's most likely tokens in the held-out
            shard, before training; Σ min(p, q) over all tokens is at least this.
        overlap: The same after training.
        tokens: Tokens of all shards that the student learned from.
    """

    draft: nn.Module
    overlap_before: float
    overlap: float
    tokens: int


Watch = Callable[[str, int, int], None]


def distill(
    target: nn.Module,
    tokenizer: Any,
    documents: Sequence[bytes],
    plan: Distillation,
    folder: Path,
    *,
    watch: Watch = lambda part, done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Distilled:
    """Distill a draft, or resume an interrupted distillation, and write it to `folder/draft`.

    Args:
        target: Causal LM of transformers on the CPU, in evaluation mode.
        tokenizer: Its tokenizer, of transformers.
        documents: Training text, UTF-8.
        plan: Choices of the distillation.
        folder: Folder of shards, state and draft.
        watch: Function of the part (`SHARD`, then the loss of the step), how many of it are done,
            and how many there are.
        stop: Function asked before each shard and step; true ends the distillation.

    Raises:
        UserError: The text is too short, the disk is full, or `stop` was true.
    """
    with as_user_error(f"distilling a draft in {folder}"):
        student = student_of(target, plan.layers)  # an error here comes before any work
        student.eval()  # without dropout, a resumed distillation repeats to the bit
        pieces = _pieces(tokenizer, documents, plan)
        made = _digest(target, pieces, plan)
        shards = _shards(target, pieces, made, plan, folder / "shards", watch, stop)
        before = overlap(student, shards[0], plan)
        _learn(student, shards[1:], made, plan, folder / "state.tensors", watch, stop)
        after = overlap(student, shards[0], plan)
        _export(student, tokenizer, folder / "draft", asdict(plan))
    return Distilled(
        draft=student,
        overlap_before=before,
        overlap=after,
        tokens=sum(shard.tokens.numel() for shard in shards[1:]),
    )


def overlap(student: nn.Module, shard: Shard, plan: Distillation) -> float:
    """Return the mean of Σ min(p, q) over the kept tokens of the target in a shard."""
    model: Any = student
    with torch.inference_mode(), plan.computing():
        logits = model(shard.tokens, use_cache=False).logits.float()
    logs = logits.gather(-1, shard.likely) - logits.logsumexp(-1, keepdim=True)
    return float(torch.minimum(logs, shard.log_probabilities).exp().sum(-1).mean())


def loss_of(logits: Tensor, likely: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return the mean cross-entropy with the kept tokens and the mass of all others, in nats.

    Args:
        logits: Logits of the student [B, T, V].
        likely: Kept tokens of the target [B, T, K].
        log_probabilities: Logarithms of their probabilities [B, T, K].
    """
    logs = logits.gather(-1, likely) - logits.logsumexp(-1, keepdim=True)
    p = log_probabilities.exp()
    tail_p = (1 - p.sum(-1)).clamp(min=0)
    tail_q = (1 - logs.exp().sum(-1)).clamp(min=1e-6)
    return -((p * logs).sum(-1) + tail_p * tail_q.log()).mean()


def _pieces(tokenizer: Any, documents: Sequence[bytes], plan: Distillation) -> list[list[int]]:
    """Return the pieces of text that shards need, in a random order."""
    needed = (plan.shards + 1) * plan.rows
    text = b"\n\n".join(documents)[: 16 * needed * plan.length].decode(errors="replace")
    tokens = tokenizer.encode(text, add_special_tokens=False)
    count = len(tokens) // plan.length
    if count < needed:
        raise UserError(
            f"expected a text of at least {needed * plan.length} tokens for {plan.shards} shards, "
            f"found {len(tokens)}; give a longer text or ask for fewer shards"
        )
    order = np.random.default_rng([plan.seed, 7]).permutation(count)[:needed]
    return [tokens[place * plan.length : (place + 1) * plan.length] for place in order.tolist()]


def _digest(target: nn.Module, pieces: Sequence[Sequence[int]], plan: Distillation) -> str:
    """Return the digest of target, texts and what changes the shards."""
    digest = xxhash.xxh3_64()
    for name, tensor in target.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.flatten()[:64].float().numpy().tobytes())
    changing = (plan.rows, plan.length, plan.prompt, plan.top_k, plan.precision, plan.seed)
    digest.update(repr((changing, pieces)).encode())
    return digest.hexdigest()


def _shards(
    target: nn.Module,
    pieces: Sequence[Sequence[int]],
    made: str,
    plan: Distillation,
    folder: Path,
    watch: Watch,
    stop: Callable[[], bool],
) -> list[Shard]:
    """Return all shards; those that are missing are made."""
    found = []
    teacher = target
    if plan.precision == "bf16":
        teacher = copy.deepcopy(target).to(torch.bfloat16)
    for place in range(plan.shards + 1):
        path = folder / f"shard_{place:04}.tensors"
        shard = Shard.load(path, made)
        if shard is None:
            if stop():
                raise UserError("distillation was interrupted; call the same again to resume")
            mine = pieces[place * plan.rows : (place + 1) * plan.rows]
            if place % 2:
                shard = read_pieces(teacher, mine, plan.top_k)
            else:
                prompts = [piece[: plan.prompt] for piece in mine]
                seed = plan.seed * 100_003 + place
                shard = sample_texts(teacher, prompts, plan.length, plan.top_k, seed)
            shard.save(path, made)
            shard = Shard.load(path, made) or shard  # as a resumed distillation has it
        watch(SHARD, place + 1, plan.shards + 1)
        found.append(shard)
    return found


def _learn(
    student: nn.Module,
    shards: Sequence[Shard],
    made: str,
    plan: Distillation,
    state: Path,
    watch: Watch,
    stop: Callable[[], bool],
) -> None:
    """Train the student to the last step, from the state that was saved last."""
    model: Any = student
    parameters = freeze_embeddings(student)
    optimizer = torch.optim.AdamW(parameters, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.01)
    made = f"{made} {asdict(plan) | {'save_every': 0}}"
    texts = Shard(
        tokens=torch.cat([shard.tokens for shard in shards]),
        likely=torch.cat([shard.likely for shard in shards]),
        log_probabilities=torch.cat([shard.log_probabilities for shard in shards]),
    )
    order = _order(len(texts.tokens), plan)
    begun = _resume(optimizer, parameters, state, made)
    for step in range(begun, plan.steps):
        if stop():
            _save(optimizer, parameters, state, made, step)
            raise UserError("distillation was interrupted; call the same again to resume")
        rows = order[step * plan.batch : (step + 1) * plan.batch]
        optimizer.param_groups[0]["lr"] = plan.lr * _rate(step, plan.steps)
        with plan.computing():
            logits = model(texts.tokens[rows], use_cache=False).logits
        loss = loss_of(logits.float(), texts.likely[rows], texts.log_probabilities[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(optimizer, parameters, state, made, step + 1)
        watch(f"loss {loss.item():.3f}, step", step + 1, plan.steps)


def _order(texts: int, plan: Distillation) -> Tensor:
    """Return the texts of all steps, pass after pass, each in another random order."""
    passes = math.ceil(plan.steps * plan.batch / texts)
    generator = np.random.default_rng([plan.seed, 11])
    return torch.from_numpy(np.concatenate([generator.permutation(texts) for _ in range(passes)]))


def _rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the largest: a rise, then a half cosine."""
    rise = max(1, round(_WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _save(
    optimizer: torch.optim.AdamW, parameters: list[nn.Parameter], path: Path, made: str, step: int
) -> None:
    arrays = {}
    for place, parameter in enumerate(parameters):
        moments = optimizer.state[parameter]
        arrays[f"{place}.weight"] = parameter.detach().numpy()
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments:
                arrays[f"{place}.{name}"] = moments[name].numpy()
    _FORMAT.save(path, {"made": made, "step": step}, arrays)


def _resume(
    optimizer: torch.optim.AdamW, parameters: list[nn.Parameter], path: Path, made: str
) -> int:
    """Load the state that was saved last, and return its step; 0 if there is none of this plan."""
    if not path.exists():
        return 0
    try:
        fields, arrays = _FORMAT.load(path)
    except BrokenState:
        return 0
    if fields["made"] != made:
        return 0
    step = int(fields["step"])
    for place, parameter in enumerate(parameters):
        parameter.data.copy_(torch.from_numpy(arrays[f"{place}.weight"]))
        if step > 0:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.from_numpy(arrays[f"{place}.exp_avg"].copy()),
                "exp_avg_sq": torch.from_numpy(arrays[f"{place}.exp_avg_sq"].copy()),
            }
    return step


def _export(student: nn.Module, tokenizer: Any, path: Path, made: dict[str, Any]) -> None:
    """Write the draft and its tokenizer as transformers loads them, whole or not at all."""
    model: Any = student
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(str(temporary))
    write_json(temporary / MADE, json.loads(json.dumps(made)))
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
