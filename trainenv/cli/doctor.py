"""`trainenv doctor`: check this machine."""

from __future__ import annotations

import argparse

from trainenv.cli.options import Result


def doctor_command(args: argparse.Namespace) -> Result:
    """Say what was found, and what to do about it."""
    from trainenv.cli.progress import Progress
    from trainenv.doctor import examine

    with Progress("doctor", 1, quiet=args.json) as progress:
        findings = examine()
    for finding in findings:
        progress.say(f"{'ok  ' if finding['ok'] else 'FAIL'} {finding['what']}: {finding['found']}")
        if finding["remedy"]:
            progress.say(f"     → {finding['remedy']}")
    healthy = all(finding["ok"] for finding in findings)
    return {"command": "doctor", "healthy": healthy, "findings": findings}, 0 if healthy else 1
