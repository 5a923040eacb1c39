"""Find the sentences of docstrings that the rules of the house refuse.

- A summary is an imperative verb or a noun phrase: it never begins with a word of `QUESTIONS`.
- An entry of `Args` or `Attributes` is a noun phrase. A fragment begins with a preposition, a
  question word or a relative pronoun, or with a participle that no noun follows ("asked after each
  block."). A shape such as [n] in front counts as the noun.
- No sentence uses `WORDS`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc

QUESTIONS = ("What", "Whether", "Of", "How", "As", "Where", "That", "Who", "When")
PREPOSITIONS = ("of", "for", "in", "as", "by", "to", "from", "on", "with")
PRONOUNS = ("what", "whether", "how", "where", "who", "whose", "which", "that", "when", "why", "if")
IRREGULAR = ("built", "drawn", "given", "held", "kept", "known", "made", "spent", "taken", "told")
FOLLOWERS = (*PREPOSITIONS, *PRONOUNS, "about", "after", "at", "before", "beside", "once", "until")
WORDS = "beside|goes on|gone round|so many|nobody|by itself|as of|told|stands|comes by"
_QUESTION = re.compile(rf"({'|'.join(QUESTIONS)})\b(?!-)", re.IGNORECASE)
_FRAGMENT = re.compile(
    rf"({'|'.join((*PREPOSITIONS, *PRONOUNS))})\b(?!-)"
    rf"|(\w+[^\We]ed|{'|'.join(IRREGULAR)})([.,;:]|$| ({'|'.join(FOLLOWERS)})\b)",
    re.IGNORECASE,
)
_WORD = re.compile(rf"\b({WORDS})\b".replace(" ", r"\s+"), re.IGNORECASE)

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """A docstring without its indentation.

    Attributes:
        line: Line of the file where the text begins.
        text: Text as readers see it.
    """

    line: int
    text: str

    @property
    def summary(self) -> str:
        """The first line."""
        return self.text.partition("\n")[0]

    def asks(self) -> bool:
        """Tell whether the summary begins with a question word."""
        return _QUESTION.match(self.text) is not None

    def entries(self) -> Iterator[tuple[int, str, str]]:
        """Yield line, name and text of each entry of `Args` and `Attributes`."""
        section, lines = "", self.text.splitlines()
        for index, line in enumerate(lines):
            if line and not line.startswith(" "):
                section = line
            entry = re.match(r" {4}(\S[^:]*):(?: +(.*))?$", line)
            if entry is not None and section in ("Args:", "Attributes:"):
                following = lines[index + 1].strip() if index + 1 < len(lines) else ""
                yield self.line + index, entry[1], entry[2] or following

    def fragments(self) -> Iterator[tuple[int, str]]:
        """Yield line and text of each entry that does not stand alone."""
        for line, name, text in self.entries():
            if _FRAGMENT.match(text):
                yield line, f"{name}: {text}"

    def words(self) -> Iterator[tuple[int, str]]:
        """Yield line and text of each use of a word to avoid."""
        for found in _WORD.finditer(self.text):
            line = self.line + self.text.count("\n", 0, found.start())
            yield line, " ".join(found[0].split())


def docstrings(tree: ast.Module) -> Iterator[Docstring]:
    """Yield the docstrings of a module and of all that is defined in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Definition) and ast.get_docstring(node):
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            assert isinstance(first.value, ast.Constant)
            raw = str(first.value.value)
            blank = raw[: len(raw) - len(raw.lstrip())].count("\n")
            yield Docstring(line=first.lineno + blank, text=cleandoc(raw))
