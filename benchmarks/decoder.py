"""Time of the decoder against assisted generation of transformers, at equal settings.

    OMP_NUM_THREADS=1 python benchmarks/decoder.py [--json] [--repeats 7] [--ks 4 8] [--width 128]

Target and draft are GPT-2s of this project, trained for `--train-steps` steps on the embedded
corpus: `--layers` blocks and one block of the same width. With `--target FOLDER --draft FOLDER`
they are models of transformers, and prompts are cut from the held-out part of `--text`. Both sides
get the same models, prompts, K with a constant schedule, and no stopping by confidence.

- *greedy*: both generate the same text, so they accept the same tokens; this is checked.
- *sampled*: temperature 1, another text on each side; times are a token.

The sides alternate, prompt by prompt, in one process. Each ratio is the time of ours over that of
transformers: the median over repeats, and the least and greatest. `target_only` is the time of
`generate` without a draft, over that of ours. `batch_4` is the time a token of ours in a batch of
four, over that of ours alone; transformers assists one row only.

With `--json`, the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def trained(layers: int, args: argparse.Namespace) -> Any:
    """Return a GPT-2 of the project, trained for a few steps."""
    from trainenv import TrainingRun
    from trainenv.config.schema import RunConfig

    config = RunConfig.load(
        "tiny",
        {
            "model.width": args.width,
            "model.heads": 4,
            "model.layers": layers,
            "model.context": 32,
            "model.positions": 512,
            "seed": 1,
        },
    )
    run = TrainingRun.from_config(config)
    run.advance(args.train_steps)
    model = run.model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.use_cache = True
    return model


def own_prompts(vocabulary: int, count: int) -> list[list[int]]:
    """Return prompts of 24 tokens each."""
    generator = torch.Generator().manual_seed(0)
    text = b"The run was stable until the learning rate rose. Then the loss grew. "
    codes = list(text * 4)
    starts = torch.randint(len(text), (count,), generator=generator).tolist()
    return [[code % vocabulary for code in codes[start : start + 24]] for start in starts]


def loaded(args: argparse.Namespace) -> tuple[Any, Any, list[list[int]]]:
    """Return target and draft from folders, and prompts of 24 tokens each."""
    from pathlib import Path

    from trainenv.config.decoding import PairConfig, PairsConfig, PromptsConfig
    from trainenv.decoding.pairs import load_pair, prompts_of

    corpus = PromptsConfig(name="prose", source="prose")
    if args.text:
        corpus = PromptsConfig(name="text", source="text", path=args.text)
    wanted = PairConfig(
        name="pair", target=args.target, target_gguf=args.target_gguf, draft=args.draft
    )
    config = PairsConfig(pairs=(wanted,), corpora=(corpus,), device="cpu")
    pair = load_pair(wanted, config, Path())
    for model in (pair.target, pair.draft):
        chosen: Any = model.generation_config
        chosen.eos_token_id = None
        chosen.pad_token_id = 0
        chosen.use_cache = True
    prompts = prompts_of(corpus, pair.tokenizer, rows=args.prompts, length=24, seed=1)
    return pair.target, pair.draft, prompts


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    begun = time.perf_counter()
    result = act()
    return time.perf_counter() - begun, result


def measure(
    target: Any,
    draft: Any,
    prompts: list[list[int]],
    k: int,
    sampled: bool,
    args: argparse.Namespace,
) -> Any:
    """Return ratios and times for one length of the draft."""
    from trainenv.decoding.contract import GREEDY, Sampling, Settings
    from trainenv.decoding.decoder import Decoder
    from trainenv.decoding.drafters import CausalDrafter

    decoder = Decoder(
        target=target,
        drafter=CausalDrafter(model=draft),
        settings=Settings(k=k, fallback_threshold=0.0),
        sampling=Sampling() if sampled else GREEDY,
    )
    draft.generation_config.num_assistant_tokens = k
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    options: dict[str, Any] = {
        "max_new_tokens": args.tokens,
        "do_sample": sampled,
        "pad_token_id": 0,
    }

    def ours(prompt: list[int]) -> Any:
        return decoder.generate([prompt], max_new_tokens=args.tokens, end_tokens=())

    def theirs(prompt: list[int]) -> Any:
        return assisted(target, prompt, assistant_model=draft, **options)

    def alone(prompt: list[int]) -> Any:
        return assisted(target, prompt, **options)

    sides: dict[str, Callable[[list[int]], Any]] = {
        "ours": ours,
        "transformers": theirs,
        "target": alone,
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*sides, "batch")}
    accepted: list[float] = []
    per_call: list[float] = []
    for repeat in range(args.repeats + 1):  # the first warms up
        spent = dict.fromkeys(seconds, 0.0)
        for index, prompt in enumerate(prompts):
            order = list(sides) if (repeat + index) % 2 else list(reversed(sides))
            texts = {}
            for name in order:
                passed, texts[name] = timed(partial(sides[name], prompt))
                spent[name] += passed
            mine = texts["ours"]
            accepted.append(mine.acceptance)
            per_call.append(mine.tokens_per_call)
            if not sampled and not mine.sequences[0] == texts["transformers"] == texts["target"]:
                raise SystemExit("the texts differ, so the times cannot be compared")
        passed, _ = timed(
            lambda: decoder.generate(prompts[:4], max_new_tokens=args.tokens, end_tokens=())
        )
        spent["batch"] = passed / min(4, len(prompts)) * len(prompts)
        if repeat:
            for name, value in spent.items():
                seconds[name].append(value)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["transformers"])]
    tokens = args.tokens * len(prompts)
    return {
        "k": k,
        "sampled": sampled,
        "over_transformers": round(statistics.median(ratios), 3),
        "over_transformers_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "target_only": round(
            statistics.median(b / a for a, b in zip(seconds["ours"], seconds["target"])), 3
        ),
        "batch_4": round(
            statistics.median(b / a for a, b in zip(seconds["ours"], seconds["batch"])), 3
        ),
        "ms_per_token": round(1000 * statistics.median(seconds["ours"]) / tokens, 3),
        "acceptance": round(statistics.mean(accepted), 3),
        "tokens_per_call": round(statistics.mean(per_call), 3),
    }


def assisted(target: Any, prompt: list[int], **options: Any) -> tuple[int, ...]:
    """Return prompt and text of `generate`."""
    tokens = torch.tensor([prompt])
    made = target.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return tuple(made[0].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="repeats of all prompts")
    parser.add_argument("--prompts", type=int, default=6, help="number of prompts")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a prompt")
    parser.add_argument("--ks", type=int, nargs="+", default=[4, 8], help="lengths of the draft")
    parser.add_argument("--width", type=int, default=128, help="width of both models")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the target")
    parser.add_argument("--train-steps", type=int, default=150, help="training steps a model")
    parser.add_argument(
        "--target", help="folder of a target of transformers, to replace the own one"
    )
    parser.add_argument("--target-gguf", help="GGUF file in the target's folder with its weights")
    parser.add_argument("--draft", help="folder of its draft")
    parser.add_argument("--text", help="text that prompts are cut from (default: documentation)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="transformers")
    if args.target:
        target, draft, prompts = loaded(args)
    else:
        target, draft = trained(args.layers, args), trained(1, args)
        prompts = own_prompts(target.config.vocab_size, args.prompts)
    rows = []
    for k in args.ks:
        for sampled in (False, True):
            rows.append(measure(target, draft, prompts, k, sampled, args))
            if not args.json:
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if args.json:
        shape = {"width": args.width, "layers": args.layers}
        if args.target:
            shape = {"target": args.target, "draft": args.draft}
        shape["threads"] = torch.get_num_threads()
        print(json.dumps({"benchmark": "decoder", **shape, "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
