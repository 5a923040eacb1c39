"""Files that lie, each rightly signed: a name, the file's bytes, and what its refusal says."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.checkpoints.test_compression import BAD, LENGTH, frame
from tests.support.checkpoint_files import MARK, apart, encoded, forged, line, sums, together
from trainenv.checkpoints.header import TENSORS_MOST
from trainenv.tools.tensor_file.front import FRONT_MOST
from trainenv.tools.tensor_file.untrusted import COSTS, PARSED_MOST

Change = Callable[[dict[str, Any]], Any]
Case = tuple[Callable[[], bytes], str]  # made when they are needed: some are large
FIRST, SECOND = "optimizer/state/0/exp_avg", "optimizer/state/0/exp_avg_sq"
PLACE = '"@"'  # of the objective, where raw JSON is put in


def cases(exact: bytes, rounded: bytes) -> dict[str, Case]:
    """Everything below, made from a whole file of each tier."""
    small = {
        **{name: (forged(exact, change), message) for name, (change, message) in headers().items()},
        **{
            name: (forged(exact, change, total=False), message)
            for name, (change, message) in totals().items()
        },
        **{
            name: (forged(rounded, change), message)
            for name, (change, message) in roundings().items()
        },
        **{f"front of {name}": case for name, case in fronts(exact).items()},
        **{f"manifest of {name}": case for name, case in manifests(exact).items()},
        **{f"plane: {name}": case for name, case in planes(exact).items()},
    }
    ready: dict[str, Case] = {
        name: (partial(bytes, data), message) for name, (data, message) in small.items()
    }
    return ready | {f"bomb of {name}": case for name, case in bombs(exact).items()}


# ── headers that contradict the schema or themselves ────────────────────────────────────────────────────────────────


def tensor(dtype: Any, shape: Any, name: str = "x") -> Change:
    """One tensor more, which the state refers to."""

    def change(header: dict[str, Any]) -> None:
        header["tensors"][name] = [dtype, shape]
        header["state"]["objective"].append({MARK: name})

    return change


def put(**fields: Any) -> Change:
    return lambda header: header.update(fields)


def objective(value: Any) -> Change:
    return lambda header: header["state"]["objective"].append(value)


def nested(levels: int, leaf: Any = 0) -> Any:
    for _ in range(levels):
        leaf = [leaf]
    return leaf


def headers() -> dict[str, tuple[Change, str]]:
    impossible = "'x' has an impossible shape"
    return {
        "step: true": (put(step=True), "'step' must be int, found true"),
        "step: negative": (put(step=-1), r"step must be at least 0 and below 2\*\*63, found -1"),
        "step: huge": (put(step=2**63), "step must be at least 0"),
        "step: absurd": (put(step=10**4200), "step must be at least 0"),
        "step: float": (put(step=1.0), "'step' must be int"),
        "step: missing": (lambda header: header.pop("step"), "'step' is missing"),
        "sequence: negative": (put(sequence=-1), "sequence must be at least 0"),
        "sequence: false": (put(sequence=False), "'sequence' must be int"),
        "sequence: huge": (put(sequence=2**64), "sequence must be at least 0"),
        "tier: unknown": (put(tier="4bit"), "'tier' must be"),
        "tier: a list": (put(tier=["exact"]), "'tier' must be"),
        "schema: 2": (put(schema=2), "schema is version 2, this trainenv reads version 1"),
        "schema: true": (put(schema=True), "'schema' must be int"),
        "schema: an essay": (put(schema="x" * 10**6), "schema is version 'x"),
        "format: another": (
            put(format="\x1b[31mtrainenv"),
            r"its format is '\\x1b\[31mtrainenv', a checkpoint's",
        ),
        "a field more": (put(code="import os"), "unknown field 'code'"),
        "state: a list": (put(state=[]), "'state' must be a mapping"),
        "state: nothing": (put(state={}), "is missing"),
        "state: code": (
            lambda header: header["state"].update(__reduce__=["os.system", "id"]),
            "unknown field",
        ),
        "state: a mark": (
            put(state={MARK: "model/weight"}),
            "'state' must be a mapping|unknown field",
        ),
        "state: a mark of nothing": (
            objective({MARK: "gone"}),
            "state and tensors disagree about 'gone'",
        ),
        "state: a mark of more": (objective({MARK: "model/weight", "x": 1}), "must be a tensor"),
        "state: a mark that is a number": (objective({MARK: 5}), "must be a tensor"),
        "state: a mark of a mark": (objective({MARK: {MARK: "model/weight"}}), "must be a tensor"),
        "state: marks for a mapping": (
            lambda header: header["state"].update(model={MARK: {MARK: "x"}}),
            "'state.model' must be",
        ),
        "state: deep": (objective(nested(80)), "its state is nested more than 64 levels deep"),
        "tensor: nobody's": (
            lambda header: header["tensors"].update(x=["bool", []]),
            "state and tensors disagree about 'x'",
        ),
        "tensor: a mark": (
            lambda header: header["tensors"].update({MARK: ["bool", []]}),
            "'tensors' must be a mapping",
        ),
        "tensor: no shape": (
            lambda header: header["tensors"].update(x=["bool"]),
            "must be a list of 2",
        ),
        "dtype: unknown": (tensor("object", [1]), "'x' has the unknown dtype 'object'"),
        "dtype: torch's": (tensor("qint8", [1]), "'x' has the unknown dtype 'qint8'"),
        "dtype: an attribute": (tensor("__class__", [1]), "'x' has the unknown dtype '__class__'"),
        "dtype: a number": (tensor(1, [1]), "must be str"),
        "shape: negative": (tensor("bool", [-1]), impossible),
        "shape: two negatives": (tensor("float32", [-2, -2]), impossible),
        "shape: true": (tensor("bool", [True]), "must be int, found true"),
        "shape: float": (tensor("bool", [1.0]), "must be int"),
        "shape: NaN": (tensor("bool", [float("nan")]), "must be int, found nan"),
        "shape: infinity": (tensor("bool", [float("inf")]), "must be int, found inf"),
        "shape: nested": (tensor("bool", [[1]]), "must be int, found a list"),
        "shape: 65 dimensions": (tensor("bool", [1] * 65), impossible),
        "shape: 1000 dimensions": (tensor("bool", [1] * 1000), impossible),
        "shape: 2**48": (tensor("bool", [2**48]), impossible),
        "shape: 2**64 + 1": (tensor("bool", [2**64 + 1]), impossible),
        "shape: 10**4200": (tensor("bool", [10**4200]), impossible),
        "shape: an overflowing product": (tensor("float32", [2**32, 2**32]), impossible),
        "shape: an exabyte by overflow": (tensor("float32", [2**16] * 4 + [0]), impossible),
        "shape: zero times huge": (tensor("float32", [0, 2**47, 2**47]), impossible),
        "shape: a petabyte": (
            tensor("bool", [2**47, 2**3]),
            "bytes of tensors, they have 1125899906",
        ),
        "shape: another": (
            lambda header: header["tensors"]["model/weight"].__setitem__(1, [39]),
            "impossible lengths",
        ),
        "shape: reinterpreted": (
            lambda header: header["tensors"].update({"model/weight": ["float64", [20]]}),
            "manifest",
        ),
        "rounded in an exact file": (
            put(rounded={FIRST: "signed"}),
            "tensors of a file of the tier 'exact' are rounded",
        ),
    }


def totals() -> dict[str, tuple[Change, str]]:
    said = r"it declares .* bytes of tensors, they have \d+"
    return {
        "memory: none": (put(memory_bytes=0), said),
        "memory: negative": (put(memory_bytes=-1), said),
        "memory: one more": (
            lambda header: header.update(memory_bytes=header["memory_bytes"] + 1),
            said,
        ),
        "memory: absurd": (put(memory_bytes=10**4200), said),
        "memory: float": (
            lambda header: header.update(memory_bytes=float(header["memory_bytes"])),
            "'memory_bytes' must be int",
        ),
        "memory: a tensor's less": (tensor("bool", [10]), said),
    }


def roundings() -> dict[str, tuple[Change, str]]:
    def mark(**kinds: Any) -> Change:
        names = {"first": FIRST, "second": SECOND, "weight": "model/weight", "flags": "model/flags"}
        return lambda header: header["rounded"].update(
            {names.get(name, name): kind for name, kind in kinds.items()}
        )

    def alone(header: dict[str, Any]) -> None:
        del header["rounded"][SECOND]

    def gone(header: dict[str, Any]) -> None:
        """Before its second moment, which is rounded and no tensor."""
        header["tensors"][f"{SECOND}_"] = header["tensors"].pop(SECOND)
        marks = [part for part in header["state"]["objective"] if part.get(MARK) == SECOND]
        marks[0][MARK] = f"{SECOND}_"

    def other_shape(header: dict[str, Any]) -> None:
        header["tensors"][SECOND][1] = [4096]

    def cyclic(header: dict[str, Any]) -> None:
        header["rounded"][SECOND] = "direction"

    lacks = f"'{FIRST}' lacks the second moment"
    return {
        "rounded: unknown kind": (mark(first="cube"), f"'{FIRST}' can't be rounded as 'cube'"),
        "rounded: no kind": (mark(first=None), "must be str"),
        "rounded: a list": (put(rounded=[FIRST]), "'rounded' must be a mapping"),
        "rounded: no such tensor": (mark(x="signed"), "'x' can't be rounded"),
        "rounded: of bool": (mark(flags="signed"), "'model/flags' can't be rounded"),
        "rounded: a direction of nothing": (
            mark(weight="direction"),
            "'model/weight' lacks the second moment",
        ),
        "rounded: a second that is not": (alone, lacks),
        "rounded: a second that is gone": (gone, lacks),
        "rounded: a second of another shape": (other_shape, lacks),
        "rounded: a second of another kind": (mark(second="signed"), lacks),
        "rounded: a second that is a direction": (cyclic, lacks),
        "rounded: its codes are a tensor": (
            tensor("bool", [1], f"{FIRST}/codes"),
            f"the parts of '{FIRST}' have the names",
        ),
        "rounded: its scales are a tensor": (
            tensor("float32", [1], f"{SECOND}/scales"),
            f"the parts of '{SECOND}' have the names",
        ),
        "rounded: in the other tier": (put(tier="exact"), "tier 'exact' are rounded"),
    }


# ── fronts that are no JSON, and manifests that don't fit ───────────────────────────────────────────────────────────


def around(exact: bytes, value: bytes) -> bytes:
    """A header with this JSON in its state."""
    header, _, _ = apart(exact)
    header["state"]["objective"].append("@")
    return encoded(header).replace(PLACE.encode(), value)


def fronts(exact: bytes) -> dict[str, tuple[bytes, str]]:
    header, table, body = apart(exact)
    front = encoded(header)

    def made(front: bytes) -> bytes:
        return together(front, table, body, sums(header)[0])

    return {
        "nothing": (made(b""), "is no whole checkpoint"),
        "null": (made(b"null"), "it must be a mapping"),
        "a list": (made(b"[" + front + b"]"), "it must be a mapping"),
        "a number": (made(b"1e999"), "it must be a mapping"),
        "two objects": (made(front + front), "Extra data"),
        "half an object": (made(front[:-9]), "is no whole checkpoint"),
        "no JSON": (made(b"{'step': 1}"), "Expecting property name"),
        "an invalid byte": (made(front.replace(b"exact", b"ex\xff\xfe")), "codec can't decode"),
        "a surrogate": (made(front.replace(b"exact", b"\xed\xa0\x80")), "codec can't decode"),
        "UTF-8": (made(front.replace(b"exact", "é".encode())), "codec can't decode"),
        "UTF-16": (made(front.decode().encode("utf-16")), "codec can't decode"),
        "a byte order mark": (made(b"\xef\xbb\xbf" + front), "codec can't decode"),
        "an escaped surrogate": (made(front.replace(b'"exact"', b'"\\ud800"')), "'tier' must be"),
        "NUL bytes": (made(front + b"\0"), "Extra data"),
        "a key twice": (made(front[:-1] + b',"step":4}'), "an object has the same key twice"),
        "a name twice": (
            made(front.replace(b'"tensors":{', b'"tensors":{"model/long":["int64",[5000]],')),
            "the same key twice",
        ),
        "a key twice by escapes": (
            made(front[:-1] + b',"\\u0073tep":4}'),
            "an object has the same key twice",
        ),
        "an int of 5000 digits": (made(around(exact, b"9" * 5000)), "is no whole checkpoint"),
    }


def manifests(exact: bytes) -> dict[str, tuple[bytes, str]]:
    header, table, body = apart(exact)

    def made(change: Callable[[list[Any]], Any]) -> bytes:
        lines = json.loads(json.dumps(table))
        changed = change(lines)
        return together(header, lines if changed is None else changed, body)

    def length(value: Any) -> bytes:
        return made(lambda lines: lines[0].__setitem__(1, value))

    lengths, line_bad = (
        "its manifest has impossible lengths for a chunk of 'model/weight'",
        "its manifest has no checksum and",
    )
    return {
        "nothing": (together(header, b"", body), "is no whole checkpoint"),
        "an object": (made(lambda lines: {"0": 1}), r"should list \d+ chunks, found \{'0': 1\}"),
        "a number": (made(lambda lines: 9), r"should list \d+ chunks, found 9"),
        "a chunk fewer": (made(lambda lines: lines.pop()), "is no whole checkpoint"),
        "a chunk fewer, in room": (
            made(lambda lines: lines[:-1]),
            r"should list \d+ chunks, found",
        ),
        "a chunk more": (
            together(header, [*table, line(b"\0")], body + b"\0"),
            r"should list \d+ chunks, found",
        ),
        "empty lines": (made(lambda lines: [[] for _ in lines]), line_bad),
        "numbers": (made(lambda lines: [0] * len(lines)), line_bad),
        "a plane fewer": (made(lambda lines: lines[0].pop() and None), line_bad),
        "a checksum that is none": (made(lambda lines: lines[0].__setitem__(0, 7)), line_bad),
        "a short checksum": (
            made(lambda lines: lines[0].__setitem__(0, lines[0][0][:15])),
            line_bad,
        ),
        "another checksum": (
            made(lambda lines: lines[0].__setitem__(0, "0" * 16)),
            "the checksum of the .* bytes at",
        ),
        "a great checksum": (
            made(lambda lines: lines[0].__setitem__(0, lines[0][0].upper())),
            "the checksum of the .* bytes at",
        ),
        "length 0": (length(0), lengths),
        "length -1": (length(-1), lengths),
        "length true": (length(True), lengths),
        "length 1.0": (length(1.0), lengths),
        "length NaN": (length(float("nan")), lengths),
        "length 2**63": (length(2**63), lengths),
        "length '1'": (length("1"), lengths),
        "a length more than raw": (length(41), lengths),
        "lengths that end early": (length(table[0][1] - 1), r"it should have \d+ bytes, found \d+"),
        "spaces too few": (
            together(header, table, body, 0),
            r"its manifest should have \d+ bytes, found",
        ),
        "a space too many": (
            together(header, table, body, sums(header)[0] + 1),
            r"its manifest should have \d+ bytes, found",
        ),
        "deep nesting": (made(lambda lines: b"[" * 400), "is no whole checkpoint"),
        "a key twice": (made(lambda lines: b'{"a":1,"a":2}'), "the same key twice"),
    }


def planes(exact: bytes) -> dict[str, tuple[bytes, str]]:
    """A tensor of bytes whose only plane is a frame that it should not be."""
    header, table, body = apart(exact)
    tensor("uint8", [LENGTH])(header)
    header["memory_bytes"] += LENGTH
    good = frame(bytes(LENGTH))
    return {
        name: (
            together(header, [*table, line(bad)], body + bad),
            "is damaged at|impossible lengths",
        )
        for name, bad in BAD.items()
    } | {
        "raw bytes fewer": (
            together(header, [*table, line(bytes(LENGTH - 1))], body + bytes(LENGTH - 1)),
            "is damaged at",
        ),
        "no bytes left": (
            together(header, [*table, line(good)], body),
            r"it should have \d+ bytes, found",
        ),
        "bytes left over": (
            together(header, [*table, line(good)], body + good + b"\0"),
            r"it should have \d+ bytes, found",
        ),
    }


# ── as much as a front may hold ─────────────────────────────────────────────────────────────────────────────────────

# What becomes largest as Python objects.
UNITS = {
    "full lists": b"[0],",
    "chains": b"[" * 56 + b"]" * 56 + b",",
    "ints": b"-9,",
    "floats": b"1e1,",
}
# What is refused for how many parts it has, where it is as long as a front may be.
REFUSED = {
    "lists": b"[],",
    "chains": UNITS["chains"],
    "ints": b"-9,",
    "objects": b"{},",
    "full objects": b'{"a":0},',
    "texts": b'"ab",',
}


def bombs(exact: bytes) -> dict[str, Case]:
    """Fronts that are short for what they become. Those that are parsed all the same name a tensor that there is not."""
    header, table, body = apart(exact)
    refused, parsed = "its JSON has too many parts", "disagree about 'x'"
    most = FRONT_MOST - (1 << 16)  # bytes that are left for the value in the state
    wrong = b',{"%s":"x"}]' % MARK.encode()  # the end of a list, whatever stands in it

    def filled(unit: bytes, size: int) -> bytes:
        return b"[" + (unit * (size // len(unit)))[:-1] + b"]"

    def just(unit: bytes) -> bytes:
        """Largest number of units that is parsed."""
        cost = sum(unit.count(sign) * cost for sign, cost in COSTS.items())
        return filled(unit, min((PARSED_MOST - (1 << 20)) // cost * len(unit), most))

    def holding(make: Callable[[], bytes]) -> bytes:
        return together(around(exact, make()), table, body, sums(header)[0])

    def both() -> bytes:
        """Largest number of ints that is parsed, and of chunks that fit."""
        count = most // 29  # bytes of a line in the manifest
        large = json.loads(around(exact, just(b"-9,")))
        tensor("uint8", [count << 20])(large)
        large["memory_bytes"] += count << 20
        return together(large, [*table, *[line(b"\1")] * count], body + b"\1" * count)

    def crowded() -> bytes:
        names = [f"{number:x}" for number in range(TENSORS_MOST)]
        header, table, body = apart(exact)
        header["tensors"] |= {name: ["bool", [0]] for name in names}
        header["state"]["objective"].append([{MARK: name} for name in names])
        return together(header, table, body)

    values: dict[str, tuple[Callable[[], bytes], str]] = {
        **{
            f"{name}, as many as are parsed": (lambda unit=unit: b"[" + just(unit) + wrong, parsed)
            for name, unit in UNITS.items()
        },
        **{name: (lambda unit=unit: filled(unit, most), refused) for name, unit in REFUSED.items()},
        "keys": (
            lambda: b"[{" + b",".join(b'"%x":0' % number for number in range(10**5)) + b"}" + wrong,
            parsed,
        ),
        "a wide text": (lambda: b'["\\ud83d\\ude00' + b"a" * most + b'"' + wrong, parsed),
        "marks": (
            lambda: (
                b"[" + b",".join(b'{"%s":"%x"}' % (MARK.encode(), n) for n in range(10**5)) + b"]"
            ),
            "disagree about '0'",
        ),
        "depth": (lambda: b"[" * 10**6 + b"]" * 10**6, f"too deeply|{refused}"),
        "less depth": (lambda: b"[" * 10**5 + b"]" * 10**5, "too deeply"),
        "depth of objects": (lambda: b'{"a":' * 10**4 + b"0" + b"}" * 10**4, "too deeply"),
        "ints of many digits": (lambda: b"[" + filled(b"9" * 4300 + b",", most) + wrong, parsed),
        "more than fits": (lambda: filled(b"1e1,", FRONT_MOST), "don't fit into"),
    }
    return {
        **{name: (partial(holding, make), message) for name, (make, message) in values.items()},
        "tensors": (
            crowded,
            f"it has {TENSORS_MOST + len(header['tensors'])} tensors, {TENSORS_MOST} fit",
        ),
        "both": (both, "GiB of memory, found|is damaged at"),
    }
