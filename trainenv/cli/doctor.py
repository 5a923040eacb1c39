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
import torch

from trainenv.cli.options import Result
from trainenv.run import TrainingRun
from trainenv.tools.optional import EXTRAS, is_installed

Finding = dict[str, Any]

_PACKAGES = ("torch", "transformers", "tokenizers", "gymnasium", "numpy", "pyarrow")


def doctor_command(args: argparse.Namespace) -> Result:
    """Say what was found, and what to do about it."""
    from trainenv.cli.progress import Progress

    with Progress("doctor", 1, quiet=args.json) as progress:
        findings = examine()
    for finding in findings:
        progress.say(f"{'ok  ' if finding['ok'] else 'FAIL'} {finding['what']}: {finding['found']}")
        if finding["remedy"]:
            progress.say(f"     → {finding['remedy']}")
    healthy = all(finding["ok"] for finding in findings)
    return {"command": "doctor", "healthy": healthy, "findings": findings}, 0 if healthy else 1


def examine() -> list[Finding]:
    """One finding a check: what was looked at, whether it is well, what was found, and the remedy where it is not."""
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
        f"pip install {' '.join(missing)}" if missing else "",
    )


def _extras() -> Finding:
    absent = {extra for package, extra in EXTRAS.items() if not is_installed(package)}
    there = sorted(set(EXTRAS.values()) - absent)
    remedy = f"pip install 'trainenv[{','.join(sorted(absent))}]'" if absent else ""
    return _finding("extras", True, ", ".join(there) or "none", remedy)


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    return _finding(
        "memory",
        free > 1,
        f"{free:.1f} GiB free",
        "" if free > 1 else "free some: the tiny preset needs 1 GiB",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return _finding(
        "disk",
        free > 1,
        f"{free:.1f} GiB free here",
        "" if free > 1 else "runs are recorded here: free some",
    )


def _device() -> Finding:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return _finding("device", True, f"cuda: {names}")
    capability = torch.backends.cpu.get_cpu_capability()
    return _finding("device", True, f"cpu: {capability}, {torch.get_num_threads()} threads")


def _exactness_and_speed() -> list[Finding]:
    """Train the tiny preset: is a restored run the same to the bit, and how fast is a step?"""
    run = TrainingRun.from_config("tiny", {"validation.sequences": 8})
    run.advance(20)
    snapshot = run.snapshot()
    started = time.perf_counter()
    run.advance(48)
    milliseconds = 1000 * (time.perf_counter() - started) / 48
    straight = run.fingerprint()
    run.restore(snapshot)
    run.advance(48)
    exact = run.fingerprint() == straight
    remedy = (
        "" if exact else "set `deterministic: true`; on a CPU, keep the number of threads fixed"
    )
    return [
        _finding(
            "exactness",
            exact,
            "a restored run repeats itself to the bit" if exact else "a restored run differs",
            remedy,
        ),
        _finding("speed", True, f"{milliseconds:.1f} ms a step of the tiny preset"),
    ]
