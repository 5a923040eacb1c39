"""A section of a configuration: frozen, checked, and without unknown keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from trainenv.config.presets import listed
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

Rate = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


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
