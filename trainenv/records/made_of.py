"""Parts that a run was trained with, kept next to its checkpoints and checked when it is resumed.

Resumed with other parts, a run would not continue as before. `checkpoints/made_of.json` holds the
configuration, the digest of the text, and the callback that steers. Older folders have no such
file; they are resumed without a check.
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
from trainenv.tools.atomic_files import write_json
from trainenv.tools.json_lines import plain
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.types import Run

# Settings that change no bit of the result, or whose effect is compared elsewhere: a path by the
# digest of its text, a device by its numerics.
_IRRELEVANT = (
    "name",
    "device",
    "threads",
    "checkpoints",
    "corpus.path",
    "corpus.tokenizer_path",
    "corpus.cache",
    "validation.test_sequences",
    "branching.workers",
    "branching.executor",
    "branching.replayable",
    "trackers",
    "alerts",
)
# Names of callbacks in earlier versions.
_OLD_NAMES = {
    "Acting": "AgentCallback",
    "ByHand": "RollbackRule",
    "Drafting": "PlanningOptions",
    "drafting": "planning",
    "Planned": "PlannerCallback",
    "Tuned": "TunedSchedule",
}
# Packages that were not part of trainenv in earlier versions.
_OLD_PACKAGES = ("agents", "planners", "worldmodel")
_NO_CALLBACK = "nobody"


@dataclass(frozen=True, kw_only=True)
class MadeOf:
    """Parts that a run is trained with.

    Attributes:
        config: Configuration, as JSON values.
        corpus: Digest of text and tokenizer; None if the batches are the user's own.
        callback: Class and settings of the callback, as JSON values; None without a callback.
        flags: Arguments of `trainenv run` that make the callback; empty if it was made in Python.
    """

    config: Mapping[str, Any]
    corpus: str | None
    callback: Mapping[str, Any] | None
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run, callback: object | None, flags: Sequence[str] = ()) -> MadeOf:
        """Return the parts of a run and of its callback as they are now."""
        corpus = getattr(run.batches, "corpus", None)
        digest = None
        if isinstance(corpus, data.Corpus):
            digest = data.identity(corpus)
        settings = None
        if callback is not None:
            settings = _json(_settings(callback))
        return cls(
            config=_json(run.config.model_dump(mode="json")),
            corpus=digest,
            callback=settings,
            flags=tuple(flags),
        )

    @classmethod
    def read(cls, path: Path) -> MadeOf | None:
        """Return the recorded parts of the run in a folder; None if they cannot be read."""
        try:
            found = json.loads((path / FOLDER / MADE_OF).read_text(encoding="utf-8"))
            if not isinstance(found["flags"], list):
                return None
            if "responder" in found:  # name of the callback in earlier versions
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
        """Tell whether all fields have the types that `of` gives them."""
        has_callback = isinstance(self.callback, dict) and isinstance(
            self.callback.get("class"), str
        )
        return (
            isinstance(self.config, dict)
            and isinstance(self.corpus, str | None)
            and (self.callback is None or has_callback)
            and all(isinstance(flag, str) for flag in self.flags)
        )

    def write(self, path: Path) -> None:
        """Write the parts to a run's folder, whole or not at all.

        Raises:
            UserError: The file cannot be written.
        """
        if self == MadeOf.read(path):
            return
        place = path / FOLDER / MADE_OF
        try:
            write_json(place, vars(self))
        except OSError as error:
            raise UserError(
                f"expected to be able to write {place}, found: {error.strerror}; make room, or "
                "give another folder"
            ) from None

    @property
    def steered_by(self) -> str:
        """The flags or the class of the callback, for sentences."""
        return " ".join(self.flags) or self.callback_class

    @property
    def callback_class(self) -> str:
        """The class of the callback, for sentences."""
        if self.callback is None:
            return _NO_CALLBACK
        return str(self.callback["class"])

    def changes(self, now: MadeOf) -> tuple[str, ...]:
        """Return the differences to the parts `now`, as clauses of a sentence."""
        found = [
            f"{key} was {before!r}, is {after!r}"
            for key, before, after in _differing(self.config, now.config)
            if not any(key == name or key.startswith(f"{name}.") for name in _IRRELEVANT)
        ]
        if self.corpus is not None and now.corpus != self.corpus:
            found.append(
                f"the digest of the corpus (text and tokenizer) was {self.corpus}, is {now.corpus}"
            )
        then = self.callback or {}
        if now.callback is not None and then.get("class") == now.callback.get("class"):
            found += [
                f"the callback's {key} was {before!r}, is {after!r}"
                for key, before, after in _differing(then, now.callback)
            ]
        return tuple(found)


def check_corpus(path: Path, run: Run) -> None:
    """Refuse a run that trains on other text than the run in a folder.

    A run whose text is not known is accepted.

    Raises:
        UserError: The digests of the texts differ.
    """
    made = MadeOf.read(path)
    now = MadeOf.of(run, None)
    if made is not None and made.corpus is not None and made.corpus != now.corpus:
        raise UserError(
            f"the digest of the corpus (text and tokenizer) of the run in {path} was "
            f"{made.corpus}, is {now.corpus}; put the text back as it was"
        )


def check_callback(path: Path, made: MadeOf | None, now: MadeOf, *, has_state: bool) -> None:
    """Refuse to drop the state of a callback, or to give it to a callback of another kind.

    Args:
        path: Folder of the run.
        made: Parts that the run was trained with; None if the folder does not say.
        now: Parts that it is to be resumed with.
        has_state: Flag: the checkpoint holds the state of a callback.

    Raises:
        UserError: The callback is missing, or of another kind.
    """
    if not has_state:
        return
    then = None
    steered = "when it was saved"
    if made is not None and made.callback is not None:
        then = made.callback
        steered = f"by {made.steered_by}"
    if now.callback is None:
        raise UserError(
            f"the run in {path} is steered {steered}, found no callback to steer it; resume it "
            "with the callback that it had, on the command line with --branching and its "
            "--planner, or --by-hand"
        )
    if then is not None and not same_kind(then, now.callback):
        raise UserError(
            f"the run in {path} is steered {steered}, found {now.callback['class']}; resume it "
            "with the callback that it had"
        )


def same_kind(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Tell whether one callback may load the state of the other.

    A class of another package may be a wrapper around the other's, so it is accepted.
    """
    same_package = one["class"].partition(".")[0] == two["class"].partition(".")[0]
    return bool(one["class"] == two["class"] or not same_package)


def _settings(value: object) -> dict[str, Any]:
    """Return the class of an object and its plain settings.

    Settings are numbers, strings, and frozen dataclasses of those. The fields of other objects are
    left out, because they may be counters.
    """
    name = _class_name(f"{type(value).__module__}.{type(value).__qualname__}")
    found: dict[str, Any] = {"class": name}
    if not is_dataclass(value) or not (_is_frozen(value) or name.startswith("trainenv.agents.")):
        return found
    for field in fields(value):
        part = getattr(value, field.name, None)
        if field.init and (part is None or isinstance(part, bool | int | float | str)):
            found[field.name] = part
        elif field.init and _is_frozen(part):
            found[field.name] = _settings(part)
    return found


def _class_name(path: str) -> str:
    """Return the present name of a class; of our own without its module, because modules move."""
    parts = path.split(".")
    if parts[0] in _OLD_PACKAGES:
        parts = ["trainenv", *parts[:-1], _OLD_NAMES.get(parts[-1], parts[-1])]
    if parts[0] == "trainenv" and len(parts) > 2:
        return ".".join([*parts[:2], parts[-1]])
    return path


def _renamed(settings: Any) -> Any:
    """Return settings that an earlier version recorded, with the present names."""
    if not isinstance(settings, dict):
        return settings
    renamed = {_OLD_NAMES.get(key, key): _renamed(one) for key, one in settings.items()}
    if isinstance(settings.get("class"), str):
        renamed["class"] = _class_name(settings["class"])
    return renamed


def _is_frozen(value: object) -> bool:
    parameters: Any = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _differing(
    one: Mapping[str, Any], two: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, one value, other value) for each difference.

    Keys that only one of them has are no difference: another version may not know them.
    """
    for key in one:
        if key not in two or one[key] == two[key]:
            continue
        if isinstance(one[key], Mapping) and isinstance(two[key], Mapping):
            yield from _differing(one[key], two[key], f"{above}{key}.")
        else:
            yield f"{above}{key}", one[key], two[key]


def _json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON will give them back."""
    read: dict[str, Any] = json.loads(json.dumps(plain(value)))
    return read
