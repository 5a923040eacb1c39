"""`trainenv doctor`: check this machine: versions, memory, devices, exactness and speed."""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from trainenv.cli.options import Result, add_command
from trainenv.tools.optional import EXTRAS, is_installed

Finding = dict[str, Any]
"""One check: its name `what`, `ok`, what was `found`, and a `remedy` where it is not ok."""

_PACKAGES = ("torch", "transformers", "tokenizers", "gymnasium", "numpy", "pyarrow")
_MARKS = {True: "ok  ", False: "FAIL"}
_STEPS = 48  # that are timed


def add_doctor(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands,
        "doctor",
        doctor_command,
        "Check this machine: versions, memory, devices, exactness and speed.",
    )


def doctor_command(args: argparse.Namespace) -> Result:
    """Print the findings and their remedies; the exit code is 1 if a check fails."""
    from trainenv.cli.progress import Progress

    with Progress("doctor", 1, quiet=args.json) as progress:
        findings = examine()
    for finding in findings:
        progress.say(f"{_MARKS[finding['ok']]} {finding['what']}: {finding['found']}")
        if finding["remedy"]:
            progress.say(f"     → {finding['remedy']}")
    healthy = all(finding["ok"] for finding in findings)
    return {"command": "doctor", "healthy": healthy, "findings": findings}, int(not healthy)


def examine() -> list[Finding]:
    """Run all checks, one finding each."""
    return [
        _python(),
        _packages(),
        _extras(),
        _memory(),
        _disk(),
        _device(),
        *_exactness_and_speed(),
    ]


def _finding(what: str, ok: bool, found: str, remedy: str = "") -> Finding:
    """Make a finding; the remedy is left out if the check is ok."""
    if ok:
        remedy = ""
    return {"what": what, "ok": ok, "found": found, "remedy": remedy}


def _python() -> Finding:
    return _finding(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} on {platform.machine()}",
    )


def _packages() -> Finding:
    found = []
    missing = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return _finding(
        "packages",
        not missing,
        ", ".join(found),
        f"pip install {' '.join(missing)}",
    )


def _extras() -> Finding:
    absent = {extra for package, extra in EXTRAS.items() if not is_installed(package)}
    there = sorted(set(EXTRAS.values()) - absent)
    found = _finding("extras", True, ", ".join(there) or "none")
    if absent:  # they are optional, so this is no failure
        found["remedy"] = f"pip install 'trainenv[{','.join(sorted(absent))}]'"
    return found


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    return _finding(
        "memory",
        free > 1,
        f"{free:.1f} GiB free",
        "free some: the tiny preset needs 1 GiB",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return _finding(
        "disk",
        free > 1,
        f"{free:.1f} GiB free here",
        "runs are recorded here: free some",
    )


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return _finding("device", True, f"cuda: {names}")
    capability = torch.backends.cpu.get_cpu_capability()
    return _finding("device", True, f"cpu: {capability}, {torch.get_num_threads()} threads")


def _exactness_and_speed() -> list[Finding]:
    """Train the tiny preset: check that a restored run is bit-identical, and time a step."""
    from trainenv.run import TrainingRun

    run = TrainingRun.from_config("tiny", {"validation.sequences": 8})
    run.advance(20)
    snapshot = run.snapshot()
    started = time.perf_counter()
    run.advance(_STEPS)
    milliseconds = 1000 * (time.perf_counter() - started) / _STEPS
    straight = run.fingerprint()
    run.restore(snapshot)
    run.advance(_STEPS)
    exact = run.fingerprint() == straight
    return [
        _finding(
            "exactness",
            exact,
            {True: "a restored run is bit-identical", False: "a restored run differs"}[exact],
            "set `deterministic: true`; on a CPU, keep the number of threads fixed",
        ),
        _finding("speed", True, f"{milliseconds:.1f} ms a step of the tiny preset"),
    ]
