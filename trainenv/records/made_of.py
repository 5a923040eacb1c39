"""What a run was trained with, beside its checkpoints: resumed with anything else, it would not go on as it was.

`checkpoints/made_of.json` holds the configuration, the digest of the text and who steers. Folders
that were written before there was such a file are resumed all the same, unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv import data
from trainenv.checkpoints import FOLDER, MADE_OF
from trainenv.config.presets import with_new_keys
from trainenv.tools.json_lines import plain
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.types import Run

# Settings that change no bit, or whose effect is compared elsewhere: a path by its text's digest, a
# device by its numerics.
_NO_MATTER = (
    "name",
    "device",
    "threads",
    "checkpoints",
    "corpus.path",
    "corpus.tokenizer_path",
    "corpus.cache",
    "branching.workers",
    "branching.replayable",
)
_ONCE_CALLED = {
    "Acting": "AgentCallback",
    "ByHand": "RollbackRule",
    "Planned": "PlannerCallback",
    "Tuned": "TunedSchedule",
}
_ONCE_AT_THE_TOP = (
    "agents",
    "planners",
    "worldmodel",
)  # packages of their own before they were part of trainenv


@dataclass(frozen=True, kw_only=True)
class MadeOf:
    """What a run is trained with.

    Attributes:
        config: the configuration, as JSON values.
        corpus: digest of text and tokenizer; None where the batches are the user's own.
        callback: class and settings of who steers, as JSON values; None where nobody does.
        flags: arguments of `trainenv run` that make the callback; empty where it was made in
            Python.
    """

    config: Mapping[str, Any]
    corpus: str | None
    callback: Mapping[str, Any] | None
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run, callback: object | None, flags: Sequence[str] = ()) -> MadeOf:
        """What a run, and who steers it, are made of now."""
        corpus = getattr(run.batches, "corpus", None)
        return cls(
            config=_json(run.config.model_dump(mode="json")),
            corpus=data.identity(corpus) if isinstance(corpus, data.Corpus) else None,
            callback=None if callback is None else _json(_settings(callback)),
            flags=tuple(flags),
        )

    @classmethod
    def read(cls, path: Path) -> MadeOf | None:
        """What the run recorded in a folder was made of; None where the folder does not say."""
        try:
            found = json.loads((path / FOLDER / MADE_OF).read_text(encoding="utf-8"))
            if not isinstance(found["flags"], list):
                return None
            if "responder" in found:  # as callbacks were once called
                found["callback"] = found["responder"]
            made = cls(
                **{field.name: found[field.name] for field in fields(cls)}
                | {"flags": tuple(found["flags"])}
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        if not made._is_sound():
            return None
        return replace(
            made, config=with_new_keys(made.config, warn=False), callback=_renamed(made.callback)
        )

    def _is_sound(self) -> bool:
        """Whether the parts of what was read are what `of` makes; more parts, of a later version, do no harm."""
        steered = self.callback is None or (
            isinstance(self.callback, dict) and isinstance(self.callback.get("class"), str)
        )
        flags = all(isinstance(flag, str) for flag in self.flags)
        return (
            isinstance(self.config, dict)
            and isinstance(self.corpus, str | None)
            and steered
            and flags
        )

    def write(self, path: Path) -> None:
        """Keep it in a run's folder, whole or not at all.

        Raises:
            UserError: it can't be written.
        """
        if self == MadeOf.read(path):
            return
        place = path / FOLDER / MADE_OF
        temporary = place.with_name(f".{MADE_OF}.tmp")
        try:
            temporary.write_text(json.dumps(vars(self), indent=1) + "\n", encoding="utf-8")
            temporary.replace(place)
        except OSError as error:
            raise UserError(
                f"{place} can't be written: {error.strerror}; make room, or give another folder"
            ) from None

    @property
    def steered_by(self) -> str:
        """Who steers, in words."""
        return " ".join(self.flags) or self.callback_class

    @property
    def callback_class(self) -> str:
        """The class of who steers, in words."""
        return "nobody" if self.callback is None else str(self.callback["class"])

    def changes(self, now: MadeOf) -> tuple[str, ...]:
        """What is not as it was, in words."""
        found = [
            f"{key} was {before!r}, is {after!r}"
            for key, before, after in _differing(self.config, now.config)
            if not any(key == name or key.startswith(f"{name}.") for name in _NO_MATTER)
        ]
        if self.corpus is not None and now.corpus != self.corpus:
            found.append(
                f"the digest of the corpus (text and tokenizer) was {self.corpus}, is {now.corpus}"
            )
        if now.callback is not None and self.steered_by != "nobody":
            before, after = (made.callback or {} for made in (self, now))
            if before.get("class") == after.get("class"):
                found += [
                    f"the callback's {key} was {a!r}, is {b!r}"
                    for key, a, b in _differing(before, after)
                ]
        return tuple(found)


def check_corpus(path: Path, run: Run) -> None:
    """Refuse a run that trains on other text than the one recorded in a folder; one whose text is not known is taken.

    Raises:
        UserError: names both digests.
    """
    made = MadeOf.read(path)
    now = MadeOf.of(run, None)
    if made is not None and made.corpus is not None and made.corpus != now.corpus:
        raise UserError(
            f"the digest of the corpus (text and tokenizer) of the run in {path} was {made.corpus}, is {now.corpus}; put the "
            "text back as it was"
        )


def check_callback(path: Path, made: MadeOf | None, now: MadeOf, *, has_state: bool) -> None:
    """Refuse to drop what a callback remembers, or to give it to one of another kind.

    Args:
        path: the run's folder.
        made: what the run was made of; None where the folder does not say.
        now: what it is to be resumed with.
        has_state: whether the checkpoint holds what a callback remembers.

    Raises:
        UserError: names both.
    """
    if not has_state:
        return  # whoever steered it remembered nothing
    then = made.callback if made is not None else None
    steered = (
        f"by {made.steered_by}" if made is not None and then is not None else "when it was saved"
    )
    if now.callback is None:
        raise UserError(
            f"the run in {path} is steered {steered}, found nobody to steer it on; resume it with the callback that it had, "
            "on the command line with --branching and its --planner, or --by-hand"
        )
    if then is not None and not same_kind(then, now.callback):
        raise UserError(
            f"the run in {path} is steered {steered}, found {now.callback['class']}; resume it with the callback that it had"
        )


def same_kind(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether one callback may remember what the other did: a class of another package may be made around it."""
    same_package = one["class"].partition(".")[0] == two["class"].partition(".")[0]
    return bool(one["class"] == two["class"] or not same_package)


def _settings(value: object) -> dict[str, Any]:
    """The class of an object and those of its settings that can be told: numbers, names, and frozen dataclasses of those."""
    found: dict[str, Any] = {
        "class": _class_name(f"{type(value).__module__}.{type(value).__qualname__}")
    }
    if not is_dataclass(value) or not (
        _is_frozen(value) or found["class"].startswith("trainenv.agents.")
    ):
        return found  # it may count in its fields
    for field in fields(value):
        part = getattr(value, field.name, None)
        if field.init and (part is None or isinstance(part, bool | int | float | str)):
            found[field.name] = part
        elif field.init and _is_frozen(part):
            found[field.name] = _settings(part)
    return found


def _class_name(path: str) -> str:
    """The name of a class without the module that it lies in, if it is one of ours: modules are moved, classes stay."""
    parts = path.split(".")
    if parts[0] in _ONCE_AT_THE_TOP:
        parts = ["trainenv", *parts[:-1], _ONCE_CALLED.get(parts[-1], parts[-1])]
    return ".".join([*parts[:2], parts[-1]]) if parts[0] == "trainenv" and len(parts) > 2 else path


def _renamed(settings: Any) -> Any:
    """Settings as an earlier version has recorded them, with the class names of now."""
    if not isinstance(settings, dict):
        return settings
    named = settings.get("class")
    renamed = {key: _renamed(one) for key, one in settings.items()}
    return renamed | {"class": _class_name(named)} if isinstance(named, str) else renamed


def _is_frozen(value: object) -> bool:
    parameters: Any = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _differing(
    one: Mapping[str, Any], two: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys that both have, with the two values where they differ: a key that only one version knows is no change."""
    for key in one:
        if key not in two or one[key] == two[key]:
            continue
        if isinstance(one[key], Mapping) and isinstance(two[key], Mapping):
            yield from _differing(one[key], two[key], f"{above}{key}.")
        else:
            yield f"{above}{key}", one[key], two[key]


def _json(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back."""
    read: dict[str, Any] = json.loads(json.dumps(plain(value)))
    return read
