"""`trainenv decode distill`: make a draft for a target from its own blocks and texts."""

from __future__ import annotations

import argparse
from typing import Any

from trainenv.cli.decode.options import add_out
from trainenv.cli.options import INTERRUPTED, Result, add_command, as_path, interruptible
from trainenv.types import UserError


def add_distill(actions: Any) -> None:
    """Add the action."""
    distilling = add_command(
        actions,
        "distill",
        distill_command,
        "Distill a draft with few layers from a target; resumable.",
    )
    distilling.add_argument(
        "--target", required=True, metavar="MODEL", help="target model: a folder or a name"
    )
    distilling.add_argument(
        "--target-gguf", metavar="FILE", help="GGUF file in the target's folder with its weights"
    )
    distilling.add_argument(
        "--text",
        type=as_path,
        metavar="FILE",
        help="text to learn from (default: documentation of Python's library)",
    )
    for name, default, about in (
        ("--layers", 3, "blocks of the draft"),
        ("--shards", 48, "batches of 8 texts with 128 tokens that the target reads or writes"),
        ("--steps", 300, "optimizer steps"),
        ("--seed", 0, "random seed"),
    ):
        distilling.add_argument(
            name, type=int, default=default, metavar="N", help=f"{about} (default: %(default)s)"
        )
    distilling.add_argument(
        "--lr",
        type=float,
        default=1e-3,
        metavar="R",
        help="largest learning rate (default: %(default)s)",
    )
    distilling.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="type of the computation; bf16 is faster on processors that have it"
        " (default: %(default)s)",
    )
    add_out(distilling, "runs/decode-distill")


def distill_command(args: argparse.Namespace) -> Result:
    """Distill a draft, and tell how much of the target's distribution it has."""
    from trainenv.cli.progress import ProgressLine
    from trainenv.config.decoding import PairConfig, PairsConfig, PromptsConfig
    from trainenv.data import prompt_texts
    from trainenv.decoding.distillation import SHARD, Distillation, distill
    from trainenv.decoding.pairs import load_model

    plan = Distillation(
        layers=args.layers,
        shards=args.shards,
        steps=args.steps,
        lr=args.lr,
        precision=args.precision,
        seed=args.seed,
    )
    corpus = PromptsConfig(name="prose", source="prose")
    if args.text is not None:
        corpus = PromptsConfig(name="text", source="text", path=args.text)
    wanted = PairConfig(
        name="pair", target=args.target, target_gguf=args.target_gguf, first_layers=args.layers
    )
    config = PairsConfig(pairs=(wanted,), corpora=(corpus,), device="cpu")
    documents, _ = prompt_texts.split(prompt_texts.documents(corpus.source, corpus.path))
    total = plan.shards + 1 + plan.steps
    result: dict[str, Any] = {"command": "decode distill", "folder": str(args.out)}
    with interruptible() as stop, ProgressLine("distill", total, quiet=args.json) as screen:

        def show(part: str, done: int, parts: int) -> None:
            note = f"{part} {done} of {parts}"
            before = 0
            if part != SHARD:
                before = plan.shards + 1
            screen.update(before + done, total, note=note, line=note)

        target, tokenizer = load_model(args.target, args.target_gguf, config, args.out)
        try:
            found = distill(target, tokenizer, documents, plan, args.out, watch=show, stop=stop)
        except UserError:
            if not stop():
                raise
            screen.say("interrupted; resume with the same command")
            return {**result, "finished": False}, INTERRUPTED
        screen.say(
            f"overlap with the target {found.overlap:.3f}, before training "
            f"{found.overlap_before:.3f}; the draft is in {args.out / 'draft'}"
        )
    return {
        **result,
        "finished": True,
        "draft": str(args.out / "draft"),
        "layers": plan.layers,
        "tokens": found.tokens,
        "overlap_before": found.overlap_before,
        "overlap": found.overlap,
    }, 0
