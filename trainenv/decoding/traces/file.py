"""Traces and cost models as files, in the checksummed format of checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from trainenv.decoding.traces.costs import CostModel
from trainenv.decoding.traces.trace import Origin, Trace
from trainenv.tools.atomic_files import write_json
from trainenv.tools.disk_errors import as_user_error
from trainenv.tools.paths import expanded
from trainenv.tools.tensor_file.arrays import ArrayFormat
from trainenv.tools.tensor_file.chunks import BrokenFile, Kind
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import UserError

SUFFIX = ".trace"
"""End of the name of a trace's file."""


class BrokenTrace(BrokenFile):
    """A trace's file that is torn, damaged, or of another format."""


_FORMAT = ArrayFormat(kind=Kind(name="trace", broken=BrokenTrace), version=1)


def save_trace(trace: Trace, path: str | Path, *, disk: Disk | None = None) -> None:
    """Write a trace, whole or not at all.

    Args:
        trace: Trace to write.
        path: Place of the file. Its folder is made if it is missing.
        disk: File system; the real one by default.

    Raises:
        UserError: The disk is full or fails; the file at `path` is as before.
    """
    values = {"origin": asdict(trace.origin), "stride": trace.stride}
    _FORMAT.save(expanded(path), values, trace.arrays(), disk)


def load_trace(path: str | Path, *, expected: Origin | None = None) -> Trace:
    """Read a trace and verify every checksum.

    Args:
        path: Place of the file.
        expected: Origin that the trace must have; None for any.

    Raises:
        BrokenTrace: The file is torn, damaged or of another format.
        UserError: The file does not exist, or is a trace of another pair.
    """
    path = expanded(path)
    values, arrays = _FORMAT.load(path)
    try:
        origin = Origin(**values["origin"])
        found: dict[str, Any] = {"origin": origin, "stride": values["stride"], **arrays}
        trace = Trace(**found)
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise BrokenTrace(f"{path} is no whole trace: {error}; record it again") from None
    if expected is not None:
        origin.check(expected)
    return trace


def save_costs(costs: CostModel, path: str | Path) -> None:
    """Write a cost model as JSON, whole or not at all.

    Raises:
        UserError: The disk is full or fails.
    """
    path = expanded(path)
    with as_user_error(f"saving {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(costs))


def load_costs(path: str | Path) -> CostModel:
    """Read a cost model.

    Raises:
        UserError: The file does not exist or is no cost model.
    """
    path = expanded(path)
    try:
        values = json.loads(path.read_text())
        known = {part.name for part in fields(CostModel)}
        if not isinstance(values, dict) or set(values) - known:
            raise ValueError(f"expected {', '.join(sorted(known))}")
        return CostModel(**values | {"target_call": tuple(values["target_call"])})
    except OSError as error:
        raise UserError(
            f"expected a cost model at {path}, found none ({error.strerror}); calibrate one"
        ) from None
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is no cost model: {error}; calibrate it again") from None
