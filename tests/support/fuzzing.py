"""Feeds `file.read` what nobody ever wrote: files changed blindly, and files changed with understanding and signed anew.

`python tests/checkpoints/fuzzing.py SEED SECONDS FOLDER` prints a report as JSON, or leaves the file that it found in FOLDER.
A turn depends on the seed and its number alone, so what was found is found again.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from tests.support.checkpoint_files import PROLOGUE, apart, chunks, content, line, sums, together
from trainenv.checkpoints import file
from trainenv.tools.tensor_file import compression
from trainenv.types import UserError

CORPUS = Path(__file__).parents[1] / "files" / "checkpoints"
ROOM = 2 << 30  # bytes of address space beyond what is in use at the start
NUMBERS = [
    0,
    1,
    -1,
    2,
    255,
    256,
    4095,
    4096,
    2**20,
    2**31,
    2**32,
    2**47,
    2**48,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
]
ODD: list[Any] = [
    None,
    True,
    False,
    0.0,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "exact",
    "8bit",
    "root",
    "direction",
    "signed",
]
MORE: list[Any] = [
    *compression.DTYPES,
    [],
    {},
    [[]],
    [0],
    {"": 0},
    {"__tensor__": "model/weight"},
    {"__tensor__": 0},
    "\ud800",
    "a\0/../b",
]
BYTES = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    ord('"'),
    ord("["),
    ord("{"),
    ord("-"),
    ord("e"),
    ord("9"),
    ord("\\"),
]


class Found(Exception):
    """A file that `read` neither refuses nor loads as it should."""


# ── blind changes: none may go unnoticed ────────────────────────────────────────────────────────────────────────────


def flip(dice: random.Random, data: bytes, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _turn in range(dice.choice([1, 1, 2, 8])):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def overwrite(dice: random.Random, data: bytes, _: list[bytes]) -> bytes:
    place = dice.randrange(len(data))
    new = (
        dice.randbytes(dice.randrange(1, 9)) if dice.random() < 0.5 else bytes([dice.choice(BYTES)])
    )
    return (data[:place] + new + data[place + len(new) :])[: len(data)]


def truncate(dice: random.Random, data: bytes, _: list[bytes]) -> bytes:
    return data[: dice.randrange(len(data))]


def cut(dice: random.Random, data: bytes, _: list[bytes]) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + data[start + dice.randrange(1, 64) :]


def double(dice: random.Random, data: bytes, _: list[bytes]) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + data[start : start + dice.randrange(1, 256)] * 2 + data[start + 1 :]


def splice(dice: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    other, place = dice.choice(seeds), dice.randrange(len(data))
    return data[:place] + other[dice.randrange(len(other)) if dice.random() < 0.5 else place :]


def lengths(dice: random.Random, data: bytes, _: list[bytes]) -> bytes:
    magic, header, manifest, digest = PROLOGUE.unpack_from(data)
    number = dice.choice([n for n in NUMBERS if 0 <= n < 2**64])
    pair = (number, manifest) if dice.random() < 0.5 else (header, number)
    return PROLOGUE.pack(magic, *pair, digest) + data[PROLOGUE.size :]


BLIND = (flip, overwrite, truncate, cut, double, splice, lengths)


# ── changes with understanding: signed anew, so that what is behind the digest is reached ───────────────────────────


def value(dice: random.Random) -> Any:
    return dice.choice(dice.choice([NUMBERS, ODD, MORE]))


def spots(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    for key, inner in [
        *(
            node.items()
            if isinstance(node, dict)
            else enumerate(node)
            if isinstance(node, list)
            else ()
        )
    ]:
        found += [(node, key), *spots(inner)]
    return found


def disturb(dice: random.Random, node: Any) -> None:
    """One change somewhere in a JSON value."""
    places = spots(node)
    if not places:
        return
    (holder, key), (other, another) = dice.choice(places), dice.choice(places)
    match dice.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = json.loads(json.dumps(other[another]))
        case 2 if isinstance(holder[key], int):
            holder[key] += dice.choice([-1, 1, 8, 4096])
        case 3 if isinstance(holder, dict):
            holder[
                dice.choice([str(another), "x", "__tensor__", "", f"{key}/codes", f"{key}_sq"])
            ] = holder[key]
        case 4 if isinstance(holder, list):
            holder.insert(key, value(dice))
        case _:
            holder[key] = value(dice)


def in_header(dice: random.Random, data: bytes) -> bytes:
    header, table, body = apart(data)
    part = dice.choice(["state", "tensors", "rounded", None])
    for _ in range(dice.choice([1, 1, 2, 4])):
        disturb(dice, header[part] if part and header.get(part) else header)
    if dice.random() < 0.7:
        header["memory_bytes"] = sums(header)[1]
    return together(header, table, body)


def in_manifest(dice: random.Random, data: bytes) -> bytes:
    header, table, body = apart(data)
    disturb(dice, table)
    return together(header, table, body)


def in_text(dice: random.Random, data: bytes) -> bytes:
    """Bytes of the front, whatever they are part of."""
    header, table, body = apart(data)
    front, manifest = (
        json.dumps(header, separators=(",", ":")).encode(),
        json.dumps(table, separators=(",", ":")).encode(),
    )
    change = dice.choice([flip, overwrite, cut, double])
    if dice.random() < 0.5:
        return together(change(dice, front, []), manifest, body, sums(header)[0])
    return together(front, change(dice, manifest, []), body, sums(header)[0])


def in_chunk(dice: random.Random, data: bytes) -> bytes:
    """The planes of a chunk, under the right checksum and lengths."""
    header, table, body = apart(data)
    stored = [*chunks(table, body)]
    place = dice.randrange(len(table))
    pieces, start = [], 0
    for size in table[place][1:]:
        pieces.append(stored[place][start : start + size])
        start += size
    which = dice.randrange(len(pieces))
    raw = dice.choice([b"", b"\0", bytes(300), dice.randbytes(40), pieces[which]])
    made: list[Callable[[], bytes]] = [
        lambda: flip(dice, pieces[which], []),
        lambda: cut(dice, pieces[which], []) or b"\0",
        lambda: double(dice, pieces[which], []),
        lambda: zstandard.ZstdCompressor(
            level=dice.randrange(1, 20), write_content_size=dice.random() < 0.5
        ).compress(raw),
        lambda: pieces[which] + zstandard.ZstdCompressor().compress(raw),
        lambda: dice.choice([piece for chunk in stored for piece in (chunk, chunk[:40])]) or b"\0",
        lambda: dice.randbytes(len(pieces[which])),
    ]
    pieces[which] = dice.choice(made)()
    table[place], stored[place] = line(*pieces), b"".join(pieces)
    return together(header, table, b"".join(stored))


def in_order(dice: random.Random, data: bytes) -> bytes:
    """Chunks and their lines, moved, dropped or twice."""
    header, table, body = apart(data)
    pairs = [*zip(table, chunks(table, body))]
    match dice.randrange(4):
        case 0:
            dice.shuffle(pairs)
        case 1:
            pairs.pop(dice.randrange(len(pairs)))
        case 2:
            pairs.insert(dice.randrange(len(pairs)), dice.choice(pairs))
        case _:
            header["tensors"] = dict(
                dice.sample([*header["tensors"].items()], len(header["tensors"]))
            )
    return together(
        header,
        [entry for entry, _ in pairs],
        b"".join(chunk for _, chunk in pairs),
        sums(header)[0],
    )


SIGNED = (in_header, in_header, in_header, in_manifest, in_text, in_chunk, in_chunk, in_order)


# ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def made(seed: int, turn: int, seeds: list[bytes]) -> tuple[bytes, bool]:
    """The file of a turn, and whether it was signed anew."""
    dice = random.Random(f"{seed}/{turn}")
    data = dice.choice(seeds)
    if dice.random() < 0.3:
        for _ in range(dice.choice([1, 1, 2, 3])):
            data = dice.choice(BLIND)(dice, data, seeds) if len(data) > PROLOGUE.size else data
        return data, False
    return dice.choice(SIGNED)(dice, data), True


def judged(path: Path, data: bytes, signed: bool, seeds: list[bytes]) -> str:
    """Fate of a file, in a few words.

    Raises:
        Found: that should not have happened.
    """
    path.write_bytes(data)
    try:
        loaded = file.read(path)
    except UserError as error:
        said = str(error)
        if str(path) not in said or not said.isprintable() or len(said) > 1000:
            raise Found(f"it was refused by {said!r:.2000}") from None
        return re.sub(r"'.*'|\d+", "…", said.removeprefix(str(path)))
    except Exception as error:
        raise Found(f"{type(error).__name__}: {error}") from error
    if not signed and data not in seeds:
        raise Found("it was changed, and loaded")
    # What was signed anew may hold anything; but then it is a snapshot, and as good as any.
    again = path.with_name("again")
    try:
        file.write(loaded, again)
        same = content(file.read(again))[2:] == content(loaded)[2:]
    except Exception as error:
        raise Found(
            f"it was loaded, but could not be written ({type(error).__name__}: {error})"
        ) from error
    if not same or loaded.nbytes > file.read_header(path).memory_bytes:
        raise Found("it was loaded, but is no snapshot")
    return "loaded"


def fuzz(seed: int, seconds: float, folder: Path, most: int = sys.maxsize) -> Counter[str]:
    """Turns until the time is up, counted by what became of them.

    Raises:
        Found: names the turn, and the file with what it did.
    """
    seeds = [path.read_bytes() for path in sorted(CORPUS.glob("*.ptz"))]
    end, turn, outcomes = time.monotonic() + seconds, 0, Counter[str]()
    while turn < most and time.monotonic() < end:
        data, signed = made(seed, turn, seeds)
        try:
            outcomes[judged(folder / "input", data, signed, seeds)] += 1
        except Found as found:
            kept = folder / f"found-{seed}-{turn}.ptz"
            kept.write_bytes(data)
            raise Found(f"seed {seed}, turn {turn}, kept as {kept}: {found}") from found
        turn += 1
    return outcomes


if __name__ == "__main__":
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted = fuzz(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(json.dumps({"outcomes": counted, "grown": grown}))
