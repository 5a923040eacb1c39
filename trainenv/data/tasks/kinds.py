"""Kinds of small tasks: each makes a task of a given difficulty from random numbers.

Two forms: a prompt ends with a program and a question mark, and the solution is the program's
result; or a prompt is a description, and the solution is a program. The expected results are
computed here in Python, and the tests compare them with the interpreter's.

Wrong solutions are those that a hasty solver would give: off by one, swapped operands, digits or
steps, a step left out, no precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trainenv.data.tasks.language import Value
from trainenv.data.tasks.task import RESULT, Case

Random = np.random.Generator
HARDEST = 4
_WORD = "abcdefghijklmnopqrstuvwxyz"
_INPUTS = (0, 1, 2, 3, 5, 8, 13, -4)
_STRINGS = ("abcdef", "Hello", "xy", "level", "Zebra12", "mississippi")


@dataclass(frozen=True, slots=True)
class Draft:
    """A task before its wrong solutions are verified.

    Attributes:
        prompt: Text that a model completes.
        solution: Right solution.
        wrong: Candidates for wrong solutions; some may be right by chance.
        cases: Checks of a program; empty where the solution is a result.
        program: Program in the prompt whose result is the solution; empty for a description.
    """

    prompt: str
    solution: str
    wrong: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    program: str = ""


Kind = Callable[[Random, int], Draft]


# ── results of programs ───────────────────────────────────────────────────────────────────────────


def sums(random: Random, difficulty: int) -> Draft:
    """A sum or difference of numbers with `difficulty` digits."""
    left = _digits(random, difficulty)
    right = _digits(random, difficulty)
    if random.integers(2):
        return _result(f"y={left}+{right}", left + right, (left - right, left + right - 10))
    return _result(f"y={left}-{right}", left - right, (right - left, left + right))


def products(random: Random, difficulty: int) -> Draft:
    """A product with terms added to it; a wrong solution ignores precedence."""
    first, second, factor = (int(n) for n in random.integers(2, 3 + 3 * difficulty, 3))
    if random.integers(2):
        program = f"y={first}+{second}*{factor}"
        return _result(
            program, first + second * factor, ((first + second) * factor, first * second + factor)
        )
    program = f"y=({first}+{second})*{factor}"
    return _result(
        program, (first + second) * factor, (first + second * factor, first * factor + second)
    )


def strings(random: Random, difficulty: int) -> Draft:
    """A string after `difficulty` steps."""
    word = _word(random, 3 + difficulty)
    steps = [_STRING_STEPS[i] for i in random.integers(0, len(_STRING_STEPS), difficulty)]
    counts = random.integers(1, 3, difficulty)
    code = f"'{word}'"
    value = word
    before = word
    for step, count in zip(steps, counts):
        before = value
        code = step.code.format(code, n=count)
        value = str(step.result(value, int(count)))
    wrong = (before, value[::-1], value[:-1], value + value[-1:], value[1:])
    return _text_result(f"y={code}", value, wrong)


def traces(random: Random, difficulty: int) -> Draft:
    """The last of several assignments that use each other."""
    start, add, factor = (int(n) for n in random.integers(2, 4 + 2 * difficulty, 3))
    value = start
    lines = [f"x={start}"]
    before = start
    for place in range(difficulty):
        before = value
        if place % 2:
            value -= factor
            lines.append(f"x=x-{factor}")
        else:
            value = value * factor + add
            lines.append(f"x=x*{factor}+{add}")
    lines.append("y=x")
    return _result(";".join(lines), value, (before, value + factor, value - add, start))


def loops(random: Random, difficulty: int) -> Draft:
    """A sum over a loop; a wrong solution has one round more or fewer."""
    rounds = int(random.integers(2, 4 + difficulty))
    factor = int(random.integers(1, 2 + difficulty))
    start = int(random.integers(0, 2 + 2 * difficulty))

    def total(count: int) -> int:
        return start + factor * count * (count - 1) // 2

    program = f"y={start};for i in {rounds}{{y=y+i*{factor}}}"
    if factor == 1:
        program = f"y={start};for i in {rounds}{{y=y+i}}"
    return _result(program, total(rounds), (total(rounds + 1), total(rounds - 1)))


def branches(random: Random, difficulty: int) -> Draft:
    """A choice between two values; a wrong solution takes the other one."""
    value, limit, add = (int(n) for n in random.integers(1, 5 * 2**difficulty, 3))
    program = f"x={value};if x>{limit}{{y=x-{add}}}else{{y=x+{add}}}"
    if value > limit:
        return _result(program, value - add, (value + add, add - value))
    return _result(program, value + add, (value - add, value))


# ── programs for descriptions ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of a description.

    Attributes:
        words: Words for it, with its number as `{n}`.
        code: Code around the code so far, with the number as `{n}`.
        result: Function from the value so far and the number to the value.
    """

    words: str
    code: str
    result: Callable[..., Value]


_NUMBER_STEPS = (
    _Step("add {n}", "({0}+{n})", lambda x, n: x + n),
    _Step("subtract {n}", "({0}-{n})", lambda x, n: x - n),
    _Step("subtract it from {n}", "({n}-{0})", lambda x, n: n - x),
    _Step("multiply by {n}", "{0}*{n}", lambda x, n: x * n),
    _Step("divide by {n}", "{0}//{n}", lambda x, n: x // n),
    _Step("take the remainder by {n}", "{0}%{n}", lambda x, n: x % n),
)
_STRING_STEPS = (
    _Step("reverse it", "reverse({0})", lambda s, n: s[::-1]),
    _Step("take the first {n}", "first({0},{n})", lambda s, n: s[:n]),
    _Step("take the last {n}", "last({0},{n})", lambda s, n: s[max(0, len(s) - n) :]),
    _Step("repeat it {n} times", "{0}*{n}", lambda s, n: s * n),
    _Step("make it upper case", "upper({0})", lambda s, n: s.upper()),
)


def number_words(random: Random, difficulty: int) -> Draft:
    """A program on x for a description in words."""
    return _described(random, difficulty, _NUMBER_STEPS, "x", _INPUTS, 2 + 2 * difficulty)


def string_words(random: Random, difficulty: int) -> Draft:
    """A program on s for a description in words."""
    return _described(random, difficulty, _STRING_STEPS, "s", _STRINGS, 4)


def examples(random: Random, difficulty: int) -> Draft:
    """A linear program on x for three examples; other inputs check it."""
    factor = int(random.integers(1, 2 + 2 * difficulty))
    add = int(random.integers(0, 3 * difficulty))
    shown = random.permutation(10)[:3]
    prompt = ";".join(f"x={x} y={x * factor + add}" for x in sorted(shown)) + "\n"
    cases = tuple(Case((("x", x),), x * factor + add) for x in _INPUTS)
    wrong = (
        f"y=x*{factor}+{add + 1}",
        f"y=x*{factor + 1}+{add}",
        f"y=x*{add}+{factor}",
        f"y=x+{factor}*{add}",
    )
    return Draft(prompt, f"y=x*{factor}+{add}", wrong, cases)


def loop_words(random: Random, difficulty: int) -> Draft:
    """A loop on n for the sum of some multiples; a wrong solution ends one round off."""
    factor = int(random.integers(2, 3 + 2 * difficulty))
    first = int(random.integers(0, 2 + difficulty))
    prompt = f"# {first} plus the sum of i times {factor} for i below n\n"

    def program(count: str, start: int, step: str) -> str:
        return f"y={start};for i in {count}{{y=y+{step}}}"

    cases = tuple(Case((("n", n),), first + factor * n * (n - 1) // 2) for n in _INPUTS if n >= 0)
    wrong = (
        program("n+1", first, f"i*{factor}"),
        program("n-1", first, f"i*{factor}"),
        program("n", factor, f"i*{first}"),
        program("n", first, f"i+{factor}"),
    )
    return Draft(prompt, program("n", first, f"i*{factor}"), wrong, cases)


def _described(
    random: Random,
    difficulty: int,
    steps: Sequence[_Step],
    name: str,
    inputs: Sequence[Value],
    largest: int,
) -> Draft:
    """Return a task whose prompt lists `difficulty` steps on a variable."""
    chosen = [steps[i] for i in random.integers(0, len(steps), difficulty)]
    numbers = [int(n) for n in random.integers(2, largest + 1, difficulty)]
    words = ", ".join(step.words.format(n=n) for step, n in zip(chosen, numbers))

    def code(pairs: Iterable[tuple[_Step, int]]) -> str:
        text = name
        for step, n in pairs:
            text = step.code.format(text, n=n)
        if text.startswith("(") and text.endswith(")") and _outer(text):
            text = text[1:-1]
        return f"y={text}"

    def value(start: Value) -> Value:
        for step, n in zip(chosen, numbers):
            start = step.result(start, n)
        return start

    pairs = list(zip(chosen, numbers))
    other = [steps[(steps.index(step) + 1) % len(steps)] for step in chosen]
    wrong = [
        code([*pairs[:-1], (pairs[-1][0], pairs[-1][1] + 1)]),
        code([(pairs[0][0], pairs[0][1] - 1), *pairs[1:]]),
        code(reversed(pairs)),
        code([*pairs[:-1], (other[-1], pairs[-1][1])]),
        code(pairs[:-1]),
    ]
    cases = tuple(Case(((name, start),), value(start)) for start in inputs)
    return Draft(f"# take {name}, {words}\n", code(pairs), tuple(wrong), cases)


def _outer(text: str) -> bool:
    """Tell if the first bracket of a text closes at its end."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place == len(text) - 1
    return False


def _result(program: str, value: int, wrong: Iterable[int]) -> Draft:
    """Return a task that asks for a number; candidates near it are added."""
    text = str(value)
    near = [str(value + 1), str(value - 1), str(-value), text[::-1].strip("-0") or "0", text[:-1]]
    return Draft(f"{program}\n? ", text, (*(str(one) for one in wrong), *near), program=program)


def _text_result(program: str, value: str, wrong: Iterable[str]) -> Draft:
    return Draft(f"{program}\n? ", value, tuple(wrong), program=program)


def _digits(random: Random, count: int) -> int:
    low = 10 ** (count - 1) if count > 1 else 0
    return int(random.integers(low, 10**count))


def _word(random: Random, length: int) -> str:
    return "".join(_WORD[i] for i in random.integers(0, len(_WORD), length))


KINDS: dict[str, Kind] = {
    "sums": sums,
    "products": products,
    "strings": strings,
    "traces": traces,
    "loops": loops,
    "branches": branches,
    "number_words": number_words,
    "string_words": string_words,
    "examples": examples,
    "loop_words": loop_words,
}
"""Name of each kind → function from random numbers and a difficulty to a task."""

assert RESULT == "y"
