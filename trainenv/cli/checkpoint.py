"""`trainenv checkpoint`: look after the checkpoints of a run."""

from __future__ import annotations

import argparse

from trainenv.cli.options import Result


def checkpoint_command(args: argparse.Namespace) -> Result:
    """Verify, show, collect or export."""
    from trainenv.checkpoints import commands
    from trainenv.cli.progress import Progress

    say = Progress(args.action, 1, quiet=args.json).say
    if args.action == "verify":
        return commands.verify(args.folder, say)
    if args.action == "show":
        return commands.show(args.folder, say)
    if args.action == "gc":
        return commands.collect(args.folder, say, dry_run=args.dry_run, keep_last=args.keep_last)
    return commands.export(args.folder, say, out=args.out, step=args.step)
