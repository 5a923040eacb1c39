"""The little language: its values, its bounds, and that it never fails with another error."""

from __future__ import annotations

import ast
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lengths import either
from trainenv.data import tasks
from trainenv.data.tasks import Bounds, ProgramError, run
from trainenv.data.tasks.language import FUNCTIONS, KEYWORDS

EXAMPLES = either(short=150, long=3000)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("y=1+2*3", 7),
        ("y=(1+2)*3", 9),
        ("y=10-3-2", 5),
        ("y=7//2*2", 6),
        ("y=-7//2", -4),
        ("y=-7%3", 2),
        ("y=--3", 3),
        ("y=2<3", 1),
        ("y=1<2<1", 0),  # from left to right: 1 < 1
        ("y='ab'+'c'", "abc"),
        ("y='ab'*3", "ababab"),
        ("y='ab'*-1", ""),
        ("y='b'>'ab'", 1),
        ("y='1'==1", 0),
        ("y='1'!=1", 1),
        ("y='abc'[-1]", "c"),
        ("y=first('abc',2)+last('abc',2)", "abbc"),
        ("y=last('abc',0)+first('abc',-1)", ""),
        ("y=last('abc',9)", "abc"),
        ("y=upper('aB')+lower('aB')", "ABab"),
        ("y=reverse('abc')", "cba"),
        ("y=len('abc')+abs(-2)+max(1,2)+min(1,2)", 8),
        ("y=str(12)+str(-3)", "12-3"),
        ("y=0;for i in 5{y=y+i}", 10),
        ("y='';for c in 'abc'{y=c+y}", "cba"),
        ("y=0;for i in -3{y=1}", 0),
        ("y=5;while y>0{y=y-2}", -1),
        ("if 1{y=1}else{y=2}", 1),
        ("if 0{y=1}else{y=2}", 2),
        ("y=1;if 0{y=2}", 1),
        ("y=1\n\n;y=y+1\n", 2),
        ("if 1{if 0{y=1}else{y=3}}y=y+1", 4),
        ("for i in 2{for j in 2{y=i*10+j}}", 11),
    ],
)
def test_values(source: str, value: object) -> None:
    assert run(source)["y"] == value


@pytest.mark.parametrize(
    "source",
    [
        "y", "y=", "=1", "1=y", "y=1 2", "y=1 z=2", "y=(1", "y=1)", "y=x", "y=f(1)", "y=len()", "y=len",
        "y=len('a','b')", "y=1//0", "y=1%0", "y='a'-'b'", "y='a'*'b'", "y='a'+1", "y=1+'a'", "y=-'a'",
        "y=len(1)", "y=abs('a')", "y='abc'[3]", "y=1[0]", "y='abc'['a']", "y=1<'a'", "for=1", "len=1",
        "if=1", "for i in{y=1}", "for 1 in 2{y=1}", "for len in 2{y=1}", "while 1{", "}", "else{y=1}",
        "y='a", "y=\"a\"", "y='\\n'", "y=@", "y=1.5", "y=𝟙", "y=__import__('os')", "import os", "y=x.y",
        "y=" + "9" * 31, "y=" + "(" * 100 + "1" + ")" * 100, "if 1{" * 100 + "}" * 100, "y=1;" * 2000,
        "y=2;for i in 200{y=y*y}", "y='ab';for i in 20{y=y+y}", "y='a'*1001", "while 1{}", "y=1;while 1{y=1}",
        "for i in 999999999999999999{y=1}", "y=upper('ß'*600)",
    ],
)  # fmt: skip
def test_mistakes_and_bounds(source: str) -> None:
    with pytest.raises(ProgramError):
        run(source)


def test_bounds_can_be_chosen() -> None:
    assert run("y=0;for i in 100{y=y+i}", bounds=Bounds(steps=2000))["y"] == 4950
    with pytest.raises(ProgramError, match="at most 100 steps"):
        run("y=0;for i in 100{y=y+i}", bounds=Bounds(steps=100))
    with pytest.raises(ProgramError, match="at most 2 variables"):
        run("a=1;b=2;c=3", bounds=Bounds(names=2))


def test_inputs_are_not_changed() -> None:
    inputs: dict[str, Any] = {"x": 1}
    assert run("x=x+1;y=x", inputs) == {"x": 2, "y": 2}
    assert inputs == {"x": 1}


WORDS = st.sampled_from(
    [*sorted(KEYWORDS), *FUNCTIONS, *"xyin", "range", *"0123456789", "''", "'ab'", *"+-*%<>=(){}[],;\n ",
     "//", "==", "!=", "<=", ">=", "y=", "x=", "for i in ", "if ", "while ", "{", "}"]
)  # fmt: skip
VALUES = st.integers(-(10**40), 10**40) | st.text(max_size=20)


def survives(source: str, inputs: dict[str, Any]) -> None:
    try:
        found = run(source, inputs, Bounds(steps=1000, characters=200))
    except ProgramError:
        return
    new = [value for name, value in found.items() if value is not inputs.get(name)]
    assert all(type(value) in (int, str) for value in new)


@given(st.lists(WORDS, max_size=60).map("".join), st.dictionaries(st.sampled_from("xy"), VALUES))
@settings(max_examples=EXAMPLES)
def test_any_words_end_well_or_with_its_own_error(source: str, inputs: dict[str, Any]) -> None:
    survives(source, inputs)


@given(st.text(max_size=200))
@settings(max_examples=EXAMPLES)
def test_any_text_ends_well_or_with_its_own_error(source: str) -> None:
    survives(source, {})


@pytest.mark.parametrize(
    "part", ["(", "-(", "if 1{", "len(", "max(1,", "'a'[", "y=", "1+", "-", ";", "\n"]
)
def test_repetition_ends_well_or_with_its_own_error(part: str) -> None:
    for count in (10, 100, 1000, 4000):
        survives(part * count, {})
        survives("y=" + part * count + "1", {})


OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
FORMULAS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(list(OPERATORS)), inner).map("".join),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"-{one}"),
    ),
    max_leaves=6,
)


def by_hand(node: ast.expr) -> int:
    """Value of a formula from Python's own syntax tree."""
    names = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return node.value
    if isinstance(node, ast.UnaryOp):
        return -by_hand(node.operand)
    assert isinstance(node, ast.BinOp)
    found: int = OPERATORS[names[type(node.op)]](by_hand(node.left), by_hand(node.right))
    return found


@given(FORMULAS)
@settings(max_examples=EXAMPLES)
def test_formulas_have_the_value_that_they_have_in_python(formula: str) -> None:
    if any(part.startswith("0") and len(part) > 1 for part in formula.replace("-", " ").split()):
        return
    try:
        value = by_hand(ast.parse(formula, mode="eval").body)
    except ZeroDivisionError:
        with pytest.raises(ProgramError, match="divisor"):
            run(f"y={formula}")
        return
    assert run(f"y={formula}")["y"] == value


def test_nothing_is_executed_by_python() -> None:
    folder = Path(tasks.__file__).parent
    called = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called.add(node.func.id)
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "ast" not in [alias.name for alias in node.names]
    assert "len" in called
    assert not called & {"exec", "eval", "compile", "__import__"}
