"""A safe interpreter of the little language: nothing is executed by Python, and all is bounded.

    run("y=x*2+3", {"x": 4})["y"]        # 11

It needs neither `exec` nor `eval`. A program can't reach a file, a module or an attribute: its
values are whole numbers and strings, and its operations are those listed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainenv.data.tasks.language import (
    MAX_DIGITS,
    Assign,
    Block,
    Call,
    Chain,
    Expression,
    For,
    If,
    Item,
    Literal,
    Name,
    Negative,
    ProgramError,
    Value,
    While,
    parse,
)

_LARGEST = 10**MAX_DIGITS
_CHARACTERS_A_STEP = 64  # characters that are made in one step


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Most work that a program may do.

    Args:
        steps: Number of expressions and statements that are evaluated.
        characters: Length of a string.
        names: Number of variables.
    """

    steps: int = 10_000
    characters: int = 1000
    names: int = 64


BOUNDS = Bounds()


def run(
    source: str, inputs: Mapping[str, Value] | None = None, bounds: Bounds = BOUNDS
) -> dict[str, Value]:
    """Return the variables after a program has run.

    Args:
        source: Program.
        inputs: Variables that are set before it runs.
        bounds: Most work that it may do.

    Raises:
        ProgramError: The program is not valid, uses a value wrongly, or exceeds a bound.
    """
    state = _State(dict(inputs or {}), bounds)
    state.run(parse(source))
    return state.names


class _State:
    """Variables of a running program, and the work that it has left.

    Args:
        names: Value of each variable.
        bounds: Most work.
    """

    def __init__(self, names: dict[str, Value], bounds: Bounds) -> None:
        self.names = names
        self._bounds = bounds
        self._steps = 0

    def run(self, block: Block) -> None:
        for statement in block:
            self._spend(1)
            match statement:
                case Assign(name, value):
                    self._assign(name, self._value(value))
                case For(name, over, body):
                    for item in self._items(self._value(over)):
                        self._spend(1)
                        self._assign(name, item)
                        self.run(body)
                case While(condition, body):
                    while self._value(condition):
                        self._spend(1)
                        self.run(body)
                case If(condition, body, otherwise):
                    if self._value(condition):
                        self.run(body)
                    else:
                        self.run(otherwise)

    def _assign(self, name: str, value: Value) -> None:
        self.names[name] = value
        if len(self.names) > self._bounds.names:
            raise ProgramError(f"a program has at most {self._bounds.names} variables")

    def _items(self, over: Value) -> Iterable[Value]:
        if isinstance(over, str):
            return over
        return range(over)

    def _value(self, expression: Expression) -> Value:
        """Evaluate an expression; the parser bounds its depth."""
        self._spend(1)
        match expression:
            case Literal(value):
                return value
            case Name(name):
                if name not in self.names:
                    raise ProgramError(f"expected a variable, found {name!r}")
                return self.names[name]
            case Negative(operand):
                return -_number(self._value(operand))
            case Chain(first, rest):
                left = self._value(first)
                for operator, operand in rest:
                    left = self._kept(self._applied(operator, left, self._value(operand)))
                return left
            case Item(string, index):
                text = _string(self._value(string))
                place = _number(self._value(index))
                if not -len(text) <= place < len(text):
                    raise ProgramError(f"index {place} is outside of a string of {len(text)}")
                return text[place]
            case Call(function, arguments):
                values = [self._value(argument) for argument in arguments]
                return self._kept(_called(function, values))

    def _applied(self, operator: str, left: Value, right: Value) -> Value:
        self._spend(1)
        if operator in ("==", "!="):
            return int((left == right) is (operator == "=="))
        if isinstance(left, str) and isinstance(right, int) and operator == "*":
            if len(left) * right > self._bounds.characters:
                raise ProgramError(f"a string has at most {self._bounds.characters} characters")
            return left * right
        if isinstance(left, str) and isinstance(right, str):
            return _joined(operator, left, right)
        return _calculated(operator, _number(left), _number(right))

    def _kept(self, value: Value) -> Value:
        """Check a new value against the bounds."""
        if isinstance(value, str):
            self._spend(len(value) // _CHARACTERS_A_STEP)
            if len(value) > self._bounds.characters:
                raise ProgramError(f"a string has at most {self._bounds.characters} characters")
        elif not -_LARGEST < value < _LARGEST:
            raise ProgramError(f"a number has at most {MAX_DIGITS} digits")
        return value

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > self._bounds.steps:
            raise ProgramError(f"a program has at most {self._bounds.steps} steps")


def _number(value: Value) -> int:
    if isinstance(value, str):
        raise ProgramError("expected a number, found a string")
    return value


def _string(value: Value) -> str:
    if isinstance(value, int):
        raise ProgramError("expected a string, found a number")
    return value


def _joined(operator: str, left: str, right: str) -> Value:
    """Apply an operator to two strings."""
    match operator:
        case "+":
            return left + right
        case "<":
            return int(left < right)
        case "<=":
            return int(left <= right)
        case ">":
            return int(left > right)
        case ">=":
            return int(left >= right)
    raise ProgramError(f"{operator} takes no two strings")


def _calculated(operator: str, left: int, right: int) -> int:
    """Apply an operator to two numbers."""
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "<":
            return int(left < right)
        case "<=":
            return int(left <= right)
        case ">":
            return int(left > right)
        case ">=":
            return int(left >= right)
    if right == 0:
        raise ProgramError("expected a divisor other than 0, found 0")
    if operator == "//":
        return left // right
    return left % right


def _called(function: str, values: list[Value]) -> Value:
    """Apply a function; the parser has checked its name and the number of arguments."""
    match function:
        case "abs":
            return abs(_number(values[0]))
        case "first":
            return _string(values[0])[: max(0, _number(values[1]))]
        case "last":
            text = _string(values[0])
            return text[max(0, len(text) - max(0, _number(values[1]))) :]
        case "len":
            return len(_string(values[0]))
        case "lower":
            return _string(values[0]).lower()
        case "max":
            return max(_number(values[0]), _number(values[1]))
        case "min":
            return min(_number(values[0]), _number(values[1]))
        case "reverse":
            return _string(values[0])[::-1]
        case "str":
            return str(_number(values[0]))
    return _string(values[0]).upper()
