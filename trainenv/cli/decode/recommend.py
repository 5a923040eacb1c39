"""`trainenv decode recommend`: measure a model pair for a minute, and recommend its settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainenv.cli.decode.options import add_out, add_rule, plan_of
from trainenv.cli.options import Result, add_command, as_path


def add_recommend(actions: Any) -> None:
    """Add the action."""
    advising = add_command(
        actions,
        "recommend",
        recommend_command,
        "Measure a model pair for a minute, and recommend its settings.",
    )
    advising.add_argument(
        "--target", required=True, metavar="MODEL", help="target model: a folder or a name"
    )
    advising.add_argument(
        "--draft", required=True, metavar="MODEL", help="draft model: a folder or a name"
    )
    advising.add_argument(
        "--target-gguf", metavar="FILE", help="GGUF file in the target's folder with its weights"
    )
    advising.add_argument(
        "--text",
        type=as_path,
        metavar="FILE",
        help="text that prompts are cut from (default: documentation of Python's library)",
    )
    advising.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="time to measure the pair (default: %(default)s)",
    )
    advising.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="sampling temperature (default: %(default)s)",
    )
    advising.add_argument(
        "--lessons",
        type=as_path,
        metavar="FILE",
        help="lessons of other pairs, which decode evaluate writes (default: those shipped)",
    )
    add_rule(advising)
    add_out(advising, "runs/decode-recommend")


def recommend_command(args: argparse.Namespace) -> Result:
    """Measure a pair, and recommend its settings in one sentence."""
    from trainenv.agents.thresholds.experience import load_experience
    from trainenv.agents.thresholds.measuring import measure
    from trainenv.agents.thresholds.meta import Kernel
    from trainenv.agents.thresholds.pictures import picture
    from trainenv.agents.thresholds.recommend import Recommender
    from trainenv.agents.thresholds.sources import Source
    from trainenv.cli.progress import ProgressLine
    from trainenv.config.decoding import PairConfig, PairsConfig, PromptsConfig, TraceConfig
    from trainenv.decoding.pairs import load_pair, prompts_of
    from trainenv.report import write_report
    from trainenv.report.decoding import DECODING
    from trainenv.tools.atomic_files import write_json
    from trainenv.tools.checks import number

    plan = plan_of(args, seeds=1)
    number("--seconds", args.seconds, above=0)
    number("--temperature", args.temperature, least=0)
    known = load_experience(args.lessons, plan.rule, plan.k)
    corpus = PromptsConfig(name="prose", source="prose")
    if args.text is not None:
        corpus = PromptsConfig(name="text", source="text", path=args.text)
    wanted = PairConfig(
        name="pair", target=args.target, target_gguf=args.target_gguf, draft=args.draft
    )
    extent = TraceConfig.model_validate({"temperature": args.temperature, **_stride(plan.rule)})
    config = PairsConfig(pairs=(wanted,), corpora=(corpus,), trace=extent)
    with ProgressLine("recommend", 3, quiet=args.json) as screen:
        screen.update(0, 3, note="loading the models", line="loading the models")
        loaded = load_pair(wanted, config, args.out)
        prompts = prompts_of(corpus, loaded.tokenizer, rows=extent.rows, length=extent.prompt)
        note = f"measuring for {args.seconds:.0f} s"
        screen.update(1, 3, note=note, line=note)
        trace, costs = measure(
            loaded, prompts, corpus=corpus.name, extent=extent, seconds=args.seconds
        )
        pair = f"{Path(args.target).name} with {Path(args.draft).name}"
        source = Source(pair=pair, corpus=corpus.name, trace=trace, costs=costs)
        task = plan.task(source, trace, trace)
        screen.update(2, 3, note="recommending", line="recommending")
        policy = Kernel.fit(known.lessons) if known.lessons else None
        found = Recommender(policy=policy, choice=known.choice).recommend(task)
        args.out.mkdir(parents=True, exist_ok=True)
        record = {
            "finished": True,
            "plan": {"rule": plan.rule, "k": plan.k},
            "tasks": [picture(source, plan)],
            "methods": [],
            "rows": [],
            "summary": found.sentence(),
            "recommendation": found.to_json(),
        }
        write_json(args.out / DECODING, record)
        report = write_report(args.out)
        screen.update(3, 3, note="", line="done")
        screen.say(f"{pair} on {corpus.name}, {found.texts} texts")
        screen.say(found.sentence())
        screen.say(f"report: {report}")
    return {
        "command": "decode recommend",
        "folder": str(args.out),
        "report": str(report),
        "target": args.target,
        "draft": args.draft,
        "cost_ratio": costs.ratio,
        "target_seconds": costs.target_only,
        "recommendation": found.to_json(),
    }, 0


def _stride(rule: str) -> dict[str, int]:
    """Return the stride of second blocks: only the lossy rule needs many."""
    if rule == "lossy":
        return {"stride": 16}
    return {"stride": 128}
