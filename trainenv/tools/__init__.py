"""Small tools that know nothing of training: files, paths, checks, error sentences.

    write_json(folder / "summary.json", summary)     # whole or not at all
    lr = number("lr", lr, above=0)                   # or one sentence for the user

The random state of a run is in `trainenv.tools.rng`, which loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.tools.atomic_files import replacing, write_file, write_json
    from trainenv.tools.checks import choice, count, number
    from trainenv.tools.error_text import describe_error
    from trainenv.tools.json_lines import append_line, number_or_nan, plain, read_lines
    from trainenv.tools.paths import absolute, expanded, typed
    from trainenv.tools.spelling import nearest
    from trainenv.tools.version import VERSION

__all__ = [
    "VERSION",
    "absolute",
    "append_line",
    "choice",
    "count",
    "describe_error",
    "expanded",
    "nearest",
    "number",
    "number_or_nan",
    "plain",
    "read_lines",
    "replacing",
    "typed",
    "write_file",
    "write_json",
]

__getattr__ = lazy(
    __name__,
    {
        "VERSION": ".version",
        "absolute": ".paths",
        "append_line": ".json_lines",
        "choice": ".checks",
        "count": ".checks",
        "describe_error": ".error_text",
        "expanded": ".paths",
        "nearest": ".spelling",
        "number": ".checks",
        "number_or_nan": ".json_lines",
        "plain": ".json_lines",
        "read_lines": ".json_lines",
        "replacing": ".atomic_files",
        "typed": ".paths",
        "write_file": ".atomic_files",
        "write_json": ".atomic_files",
    },
)
