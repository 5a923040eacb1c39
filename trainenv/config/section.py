"""A section of a configuration: frozen, checked, and without unknown keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from trainenv.config.other_names import called_here
from trainenv.config.presets import listed
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

Rate = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


def steps_or_share(least: int) -> Any:
    """Return the type of a number of steps, at least `least`, or of a share of the run."""

    def check(value: Any) -> Any:
        value = _plain(value)
        if isinstance(value, float) and 0 < value < 1:
            return value
        whole = isinstance(value, int | float) and value == value // 1
        if whole and not isinstance(value, bool) and value >= least:
            return int(value)
        raise ValueError(
            f"expected a whole number of steps, at least {least}, or a share of the run between 0"
            f" and 1, found {value!r}"
        )

    schema = {
        "anyOf": [
            {"type": "integer", "minimum": least},
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ]
    }
    return Annotated[int | float, BeforeValidator(check), WithJsonSchema(schema)]


class Config(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, values: Any) -> Any:
        """Turn numbers, arrays and tensors of a sweep into Python's numbers."""
        if not isinstance(values, Mapping):
            return values
        return {key: _plain(value) for key, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is expected: Python takes them as 1 and 0."""
        kinds = set(_kinds_in(cls.model_fields[str(info.field_name)].annotation))
        parts = value if isinstance(value, list | tuple) else [value]
        if bool not in kinds and kinds & {int, float}:
            for part in parts:
                if isinstance(part, bool):
                    raise ValueError(
                        f"expected a number, found {str(part).lower()}; write it in digits"
                    )
        return value


C = TypeVar("C", bound=Config)


def validate(model: type[C], values: Mapping[str, Any], source: str) -> C:
    """Return `values` as a `model`.

    Args:
        model: Class of the section, or of the whole configuration.
        values: Values by key; sections are nested mappings.
        source: File or name that the values are from, for error sentences.

    Raises:
        UserError: A key is unknown or missing, or a value is out of range.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        # An unknown key first: where a key is misspelt, the right one is also missing.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise UserError(f"{source}: {_sentence(model, dict(first))}") from None


def section_in(annotation: Any) -> type[Config] | None:
    """Find the section that a type is, or that its parts are: `Plant` in `tuple[Plant, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    found = (section_in(part) for part in get_args(annotation))
    return next((section for section in found if section is not None), None)


def field_at(model: type[Config], key: str) -> FieldInfo | None:
    """Find the field of a dotted key such as `optimizer.lr`; None if there is no such key."""
    section: type[Config] | None = model
    field = None
    for part in key.split("."):
        if section is None or part not in section.model_fields:
            return None
        field = section.model_fields[part]
        section = section_in(field.annotation)
    return field


def _sentence(model: type[Config], error: dict[str, Any]) -> str:
    """Describe an error of pydantic: the place, what is wrong there, and what was found."""
    *above, last = [part for part in error["loc"] if part != "[key]"] or [""]
    where = ".".join(str(part) for part in (*above, last))
    if error["type"] == "extra_forbidden" or "[key]" in error["loc"]:
        valid = sorted(_keys_at(model, above))
        meant = called_here(str(last)) or _elsewhere(model, str(last))
        if not meant:
            meant = nearest(str(last), valid)
        return f"unknown key {where!r}{meant}; valid here: {listed(valid)}"
    if error["type"] == "missing":
        return f"{where} is missing; state it, or start the file with `extends: tiny`"
    sentence = str(error["msg"]).removeprefix("Value error, ")
    if where:
        sentence = f"{where}: {sentence}"
    if error["type"] != "value_error":
        sentence += f", found {error['input']!r}"
    wants_text = error["type"] in ("string_type", "path_type")
    if wants_text and isinstance(error["input"], int | float | date):
        sentence += "; quote it"  # YAML reads 007, on and 2024-01-01 as no text
    return sentence


def _elsewhere(model: type[Config], name: str) -> str:
    """Return the end of a sentence that names the one other section with a key of this name."""
    found = [key for key in _dotted_keys(model) if key.rpartition(".")[2] == name]
    if len(found) != 1:
        return ""
    return f"; did you mean {found[0]!r}?"


def _dotted_keys(model: type[Config], above: str = "") -> Iterable[str]:
    """Yield the dotted name of each key of a section and of the sections inside it."""
    for name, field in model.model_fields.items():
        below = section_in(field.annotation)
        if below is field.annotation:
            assert below is not None
            yield from _dotted_keys(below, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _kinds_in(annotation: Any) -> Iterable[Any]:
    """Yield the plain types that an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _kinds_in(part)


def _keys_at(model: type[Config], location: Sequence[int | str]) -> Iterable[str]:
    """List the valid keys of the section or mapping that a location points to."""
    section: type[Config] = model
    annotation: Any = model
    for part in location:
        if part in section.model_fields:
            annotation = section.model_fields[str(part)].annotation
            section = section_in(annotation) or section
    if get_origin(annotation) is Mapping:
        names: Iterable[str] = get_args(get_args(annotation)[0])
        return names
    return section.model_fields


def _plain(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_plain(part) for part in value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
