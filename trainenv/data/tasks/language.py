"""A little language for tasks whose answers can be verified: its tokens, syntax tree and parser.

    y=0;for i in 4{y=y+i*2}
    if x>4{y=x-4}else{y=x*2}
    y=first(reverse(s),2)+'!'

Values are whole numbers and strings. Statements are separated by `;` or a line feed. A source has a
bounded length and a bounded depth of nesting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Value = int | str

MAX_SOURCE = 4096  # characters
MAX_DEPTH = 24  # brackets and blocks inside each other
MAX_DIGITS = 30  # digits of a number
FUNCTIONS = {
    "abs": 1,
    "first": 2,
    "last": 2,
    "len": 1,
    "lower": 1,
    "max": 2,
    "min": 2,
    "reverse": 1,
    "str": 1,
    "upper": 1,
}
"""Function → number of its arguments."""
KEYWORDS = {"for", "in", "while", "if", "else"}

_TOKEN = re.compile(
    r"[ \t\r]*(?:"
    r"(?P<number>[0-9]+)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<string>'[^'\\\n]*')"
    r"|(?P<sign>//|==|!=|<=|>=|[-+*%<>=(){}\[\],;\n])"
    r"|(?P<end>\Z))"
)
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_SEPARATORS = (";", "\n")


class ProgramError(Exception):
    """A program that is not valid, or that exceeds a bound when it runs."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A number or a string."""

    value: Value


@dataclass(frozen=True, slots=True)
class Name:
    """The value of a variable."""

    name: str


@dataclass(frozen=True, slots=True)
class Negative:
    """A number with the other sign."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class Chain:
    """Operators of one precedence, applied from left to right.

    Attributes:
        first: Leftmost operand.
        rest: Each further operator with its right operand.
    """

    first: Expression
    rest: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True, slots=True)
class Item:
    """Character of a string at an index."""

    string: Expression
    index: Expression


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of `FUNCTIONS`."""

    function: str
    arguments: tuple[Expression, ...]


Expression = Literal | Name | Negative | Chain | Item | Call


@dataclass(frozen=True, slots=True)
class Assign:
    """A variable gets a value."""

    name: str
    value: Expression


@dataclass(frozen=True, slots=True)
class For:
    """A loop over 0 … n − 1, or over the characters of a string."""

    name: str
    over: Expression
    body: Block


@dataclass(frozen=True, slots=True)
class While:
    """A loop that runs while its condition is not 0 and not empty."""

    condition: Expression
    body: Block


@dataclass(frozen=True, slots=True)
class If:
    """A choice by a condition, which holds if it is not 0 and not empty."""

    condition: Expression
    body: Block
    otherwise: Block


Statement = Assign | For | While | If
Block = tuple[Statement, ...]


@lru_cache(maxsize=1024)
def parse(source: str) -> Block:
    """Return the statements of a program.

    Raises:
        ProgramError: The source is too long, nested too deeply or not valid.
    """
    if len(source) > MAX_SOURCE:
        raise ProgramError(f"a program has at most {MAX_SOURCE} characters, found {len(source)}")
    parser = _Parser(_tokens(source))
    statements = parser.statements()
    if parser.token != ("end", ""):
        raise ProgramError(f"expected a statement, found {parser.token[1]!r}")
    return statements


def _tokens(source: str) -> list[tuple[str, str]]:
    """Return (kind, text) of each token; the last one is the end."""
    found = []
    place = 0
    while True:
        match = _TOKEN.match(source, place)
        if match is None or match.lastgroup is None:
            raise ProgramError(f"expected a token at character {place}, found something else")
        found.append((match.lastgroup, match[match.lastgroup]))
        if match.lastgroup == "end":
            return found
        place = match.end()


class _Parser:
    """Recursive descent over tokens.

    Args:
        tokens: Kind and text of each token.
    """

    def __init__(self, tokens: Sequence[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    @property
    def token(self) -> tuple[str, str]:
        return self._tokens[self._place]

    def statements(self) -> Block:
        """Read statements up to a closing brace or the end."""
        found: list[Statement] = []
        while True:
            while self._take_any(_SEPARATORS):
                pass
            if self.token[0] != "name":
                return tuple(found)
            statement = self._statement()
            found.append(statement)
            ended = self.token[0] == "end" or self.token[1] in (*_SEPARATORS, "}")
            if isinstance(statement, Assign) and not ended:
                raise ProgramError(f"expected ; after a value, found {self.token[1]!r}")

    def _statement(self) -> Statement:
        word = self._name()
        if word == "for":
            name = self._new_name()
            self._expect("in")
            over = self._expression()
            return For(name, over, self._block())
        if word == "while":
            condition = self._expression()
            return While(condition, self._block())
        if word == "if":
            condition = self._expression()
            body = self._block()
            otherwise: Block = ()
            if self._take_any(("else",)):
                otherwise = self._block()
            return If(condition, body, otherwise)
        _check_name(word)
        self._expect("=")
        return Assign(word, self._expression())

    def _block(self) -> Block:
        self._deeper()
        self._expect("{")
        statements = self.statements()
        self._expect("}")
        self._depth -= 1
        return statements

    def _expression(self) -> Expression:
        self._deeper()
        value = self._chain(_COMPARISONS)
        self._depth -= 1
        return value

    def _chain(self, operators: tuple[str, ...]) -> Expression:
        """Read operands between operators of one precedence."""
        first = self._operand(operators)
        rest = []
        while operator := self._take_any(operators):
            rest.append((operator, self._operand(operators)))
        if rest:
            return Chain(first, tuple(rest))
        return first

    def _operand(self, operators: tuple[str, ...]) -> Expression:
        if operators is _COMPARISONS:
            return self._chain(("+", "-"))
        if operators == ("+", "-"):
            return self._chain(("*", "//", "%"))
        minus = 0
        while self._take_any(("-",)):
            minus += 1
        value = self._item()
        if minus % 2:
            return Negative(value)
        return value

    def _item(self) -> Expression:
        value = self._atom()
        if self._take_any(("[",)):
            value = Item(value, self._expression())
            self._expect("]")
        return value

    def _atom(self) -> Expression:
        kind, text = self.token
        self._place += kind != "end"
        if kind == "number":
            if len(text) > MAX_DIGITS:
                raise ProgramError(f"a number has at most {MAX_DIGITS} digits, found {len(text)}")
            return Literal(int(text))
        if kind == "string":
            return Literal(text[1:-1])
        if text == "(":
            value = self._expression()
            self._expect(")")
            return value
        if kind != "name":
            raise ProgramError(f"expected a value, found {text!r}")
        if self.token[1] == "(":
            return self._call(text)
        _check_name(text)
        return Name(text)

    def _call(self, function: str) -> Call:
        if function not in FUNCTIONS:
            raise ProgramError(f"expected a function, found {function!r}")
        self._expect("(")
        arguments = [self._expression()]
        while self._take_any((",",)):
            arguments.append(self._expression())
        self._expect(")")
        if len(arguments) != FUNCTIONS[function]:
            raise ProgramError(
                f"{function} has {FUNCTIONS[function]} arguments, found {len(arguments)}"
            )
        return Call(function, tuple(arguments))

    def _name(self) -> str:
        kind, text = self.token
        if kind != "name":
            raise ProgramError(f"expected a name, found {text!r}")
        self._place += 1
        return text

    def _new_name(self) -> str:
        name = self._name()
        _check_name(name)
        return name

    def _take_any(self, texts: Sequence[str]) -> str:
        """Take the next token if it is one of `texts`; return it, or an empty text."""
        kind, text = self.token
        if kind in ("sign", "name") and text in texts:
            self._place += 1
            return text
        return ""

    def _expect(self, text: str) -> None:
        if not self._take_any((text,)):
            raise ProgramError(f"expected {text}, found {self.token[1]!r}")

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ProgramError(f"brackets and blocks nest at most {MAX_DEPTH} deep")


def _check_name(name: str) -> None:
    if name in KEYWORDS or name in FUNCTIONS:
        raise ProgramError(f"expected a name of a value, found {name!r}")
