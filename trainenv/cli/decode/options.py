"""Options that several actions of `trainenv decode` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import Command, add_command, as_path
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.agents.thresholds.plan import Plan


def add_pairs(actions: Any, name: str, command: Command, about: str) -> None:
    """Add an action on a configuration of pairs."""
    adding = add_command(actions, name, command, about)
    adding.add_argument(
        "pairs",
        nargs="?",
        default="own",
        metavar="CONFIG",
        help="pairs and corpora: own, opt, or a YAML file (default: %(default)s)",
    )
    add_out(adding, "runs/pairs")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options of a search."""
    parser.add_argument(
        "--budget",
        type=int,
        default=64,
        metavar="N",
        help="number of evaluations of a search (default: %(default)s)",
    )
    add_rule(parser)


def add_rule(parser: argparse.ArgumentParser) -> None:
    """Add the options of the rule."""
    parser.add_argument(
        "--rule",
        default="exact",
        metavar="RULE",
        help="rule of verification: exact, lossy or pipelined (default: %(default)s)",
    )
    parser.add_argument(
        "--max-distance",
        type=float,
        default=0.02,
        metavar="D",
        help="total-variation distance to the target that a lossy rule may cost"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--k",
        type=int,
        default=16,
        metavar="K",
        help="greatest number of drafted tokens, 1 to 16 (default: %(default)s)",
    )


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option for the folder of the results."""
    parser.add_argument(
        "--out",
        type=as_path,
        default=Path(default),
        metavar="FOLDER",
        help="folder of the results (default: %(default)s)",
    )


def plan_of(args: argparse.Namespace, *, seeds: int) -> Plan:
    """Return the choices of a search or an evaluation, from the options."""
    from trainenv.agents.thresholds.plan import GENERAL, Plan
    from trainenv.agents.thresholds.strategies import STRATEGIES
    from trainenv.decoding.traces import RULES
    from trainenv.tools.checks import choice

    choice("--rule", args.rule, RULES)
    return Plan(
        methods=_names(getattr(args, "methods", None), tuple(STRATEGIES)),
        general=_names(getattr(args, "general", None), GENERAL),
        budget=getattr(args, "budget", 64),
        seeds=seeds,
        rule=args.rule,
        allowed_distance=args.max_distance,
        k=args.k,
    )


def _names(listed: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Split `a,b` into names."""
    if listed is None:
        return default
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    if not names and listed.strip():
        raise UserError(f"expected names with commas between, found {listed!r}; name at least one")
    return names
