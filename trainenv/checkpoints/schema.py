"""Check of a state or a checkpoint's header against the fields in `configs/state_schema_v1.yaml`.

It is done before a file is written and after one is read. A value that was read may be anything;
the check passes or raises `UserError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from trainenv.config.presets import configs_folder, listed, read_yaml
from trainenv.tools.spelling import nearest
from trainenv.types import TENSOR, UserError

VERSION = 1
SCHEMA = f"state_schema_v{VERSION}.yaml"
_KINDS = {"synthetic": "synthetic", "other": "run"}  # part of the schema → field that tells it
_LONGEST = 60  # characters of a found value that a message repeats

Check = Callable[[Any, str], None]  # takes a value and its dotted path, raises _Unfit


class _Unfit(Exception):
    """A message about the first field that does not fit."""


def check_state(state: object, where: str) -> None:
    """Refuse a state that is not a training run's or a synthetic environment's.

    Args:
        state: Value of `Snapshot.state`.
        where: Name of the snapshot or file, for the message.

    Raises:
        UserError: A field is missing, unknown or of the wrong type; the message gives the dotted
            path of the first one.
    """
    _refuse_unfit("state", state, where)


def check_header(header: object, where: str) -> None:
    """Refuse a header that has other fields, or a state that does not fit.

    Arguments and errors are those of `check_state`.
    """
    _refuse_unfit("header", header, where)


def _refuse_unfit(part: str, value: object, where: str) -> None:
    try:
        _compiled(part)(value, "")
    except _Unfit as unfit:
        raise UserError(f"{where}: {unfit} ({SCHEMA} names every field)") from None


# ── from the schema to functions ──────────────────────────────────────────────────────────────────


@cache
def _parts() -> dict[str, Any]:
    return read_yaml(configs_folder() / SCHEMA)


@cache
def _compiled(part: str) -> Check:
    """Return the check for a part of the schema."""
    if part == "state":
        return _state
    return _check(_parts()[part])


def _check(spec: Any) -> Check:
    if isinstance(spec, Mapping):
        fields = {key.removesuffix("?"): _check(inner) for key, inner in spec.items()}
        rest = fields.pop("*", None)
        required = tuple(key for key in spec if key in fields)
        return partial(_mapping, fields, required, rest)
    if isinstance(spec, list):
        checks = [_check(inner) for inner in spec]
        if len(checks) > 1:
            return partial(_row, checks)
        return partial(_list, checks[0], _ONLY.get(checks[0], frozenset()))
    if "|" in spec:
        return partial(_word, spec.split("|"))
    name = spec.removesuffix("?")
    check = _SIMPLE.get(name) or _compiled(name)
    if name == spec:
        return check
    return partial(_nullable, check)


# ── the check of each type ────────────────────────────────────────────────────────────────────────


def _state(value: Any, path: str) -> None:
    """Check the state of a synthetic environment, of another run, or else of a training run."""
    part = "training"
    if isinstance(value, Mapping):
        part = next((name for name, key in _KINDS.items() if key in value), part)
    _compiled(part)(value, path)


def _mapping(
    fields: Mapping[str, Check],
    required: tuple[str, ...],
    rest: Check | None,
    value: Any,
    path: str,
) -> None:
    if not isinstance(value, Mapping) or TENSOR in value:
        raise _mistyped(path, "a mapping", value)
    # Unknown fields come first: where a field is misspelt, the right one is also missing.
    for key in value:
        if key in fields:
            continue
        if rest is None:
            raise _Unfit(
                f"unknown field {_below(path, key)!r}{nearest(_short(key), fields)}; valid here: "
                f"{listed(sorted(fields))}"
            )
        rest(value[key], _below(path, key))
    for key in required:
        if key not in value:
            raise _Unfit(f"the field {_below(path, key)!r} is missing")
    for key, check in fields.items():
        if key in value:
            check(value[key], _below(path, key))


def _list(check: Check, only: frozenset[type], value: Any, path: str) -> None:
    if not isinstance(value, list):
        raise _mistyped(path, "a list", value)
    if only and only.issuperset(map(type, value)):
        return  # much faster for long lists of numbers
    for place, inner in enumerate(value):
        check(inner, _below(path, place))


def _row(checks: list[Check], value: Any, path: str) -> None:
    if not isinstance(value, list) or len(value) != len(checks):
        raise _mistyped(path, f"a list of {len(checks)}", value)
    for place, (check, inner) in enumerate(zip(checks, value)):
        check(inner, _below(path, place))


def _nullable(check: Check, value: Any, path: str) -> None:
    if value is not None:
        check(value, path)


def _int(value: Any, path: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _mistyped(path, "int", value)


def _float(value: Any, path: str) -> None:
    if not isinstance(value, float | int) or isinstance(value, bool):
        raise _mistyped(path, "float", value)


def _str(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise _mistyped(path, "str", value)


def _bool(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise _mistyped(path, "bool", value)


def _word(words: list[str], value: Any, path: str) -> None:
    if value not in words:
        raise _mistyped(path, " or ".join(words), value)


def _tensor(value: Any, path: str) -> None:
    if not (isinstance(value, Mapping) and len(value) == 1 and isinstance(value.get(TENSOR), str)):
        raise _mistyped(path, "a tensor", value)


def _tensors(value: Any, path: str) -> None:
    """Accept any value in which every reference to a tensor is well formed.

    The walk is not recursive: a hostile file may be nested to any depth.
    """
    left: list[Any] = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, list):
            left += inner
        elif isinstance(inner, Mapping):
            if TENSOR in inner:
                _tensor(inner, path)
            else:
                left += inner.values()


_SIMPLE: dict[str, Check] = {
    "int": _int,
    "float": _float,
    "str": _str,
    "bool": _bool,
    "tensor": _tensor,
    "tensors": _tensors,
}
# Checks that need not be called on a list that holds only these types.
_ONLY: dict[Check, frozenset[type]] = {
    _int: frozenset({int}),
    _float: frozenset({float, int}),
    _str: frozenset({str}),
}


# ── messages ──────────────────────────────────────────────────────────────────────────────────────


def _below(path: str, key: object) -> str:
    """Return the dotted path of the value at `key`."""
    if not path:
        return _short(key)
    return f"{path}.{_short(key)}"


def _mistyped(path: str, expected: str, value: object) -> _Unfit:
    what = "it"
    if path:
        what = f"the field {path!r}"
    return _Unfit(f"{what} must be {expected}, found {_described(value)}")


def _described(value: object) -> str:
    """Describe a value in a few words, however large it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:
        return "a huge int"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(value)
    if isinstance(value, str):
        return f"the text {_short(value)!r}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping) and TENSOR in value:
        return "the mark of a tensor"
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)} fields"
    return type(value).__name__


def _short(key: object) -> str:
    text = type(key).__name__
    if isinstance(key, str | int):
        text = str(key)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}…"
