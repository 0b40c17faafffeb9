"""Docstrings name the thing, then say what it does: their first word is a verb or the noun itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.conftest import ROOT

FILES = sorted(
    path for folder in ("shards", "pipeline", "monitoring", "launch", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
)
FIRST_WORDS = frozenset({"what", "whatever", "whether", "who", "whoever", "where", "wherever", "of"})
"""Words that begin a relative clause or hang on a noun which stands elsewhere."""
SECTION = re.compile(r"(Args|Attributes|Returns|Raises):")
ENTRY = re.compile(r"(?P<indent> *)[\w, *]+: +of ")


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those behind an assignment included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        if not isinstance(body, list):  # of a lambda or a conditional expression
            continue
        for before, statement in zip([None, *body], body, strict=False):
            if not isinstance(statement, ast.Expr):
                continue
            value = statement.value
            documents = before is None or isinstance(before, ast.Assign | ast.AnnAssign)
            if documents and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def complaints(source: str) -> list[str]:
    """One line for each docstring or entry of Args and Attributes that breaks the rule."""
    found = []
    for line, text in docstrings(ast.parse(source)):
        first = re.match(r"\W*(\w+)", text)
        if first and first[1].lower() in FIRST_WORDS:
            found.append(f"line {line}: begins with {first[1]!r}: name the thing, or say what it does")
        in_section = False
        for number, each in enumerate(text.splitlines()):
            in_section = bool(SECTION.match(each.strip())) or (in_section and bool(each.strip()))
            if in_section and ENTRY.match(each):
                found.append(f"line {line + number}: {each.strip()!r}: repeat the noun")
    return found


def test_docstrings_name_the_thing() -> None:
    found = {str(path.relative_to(ROOT)): complaints(path.read_text(encoding="utf-8")) for path in FILES}
    assert len(found) > 300
    assert not {path: each for path, each in found.items() if each}


def test_the_rule_is_kept_by_a_check_that_can_fail() -> None:
    assert complaints('"""What it is."""')
    assert complaints('X = 1\n"""Of the encoder."""')
    assert complaints('def f(a):\n    """Does it.\n\n    Args:\n        a: of the run.\n    """')
    assert not complaints(
        'def f(a):\n    """Does what is asked.\n\n    Args:\n        a: seed of the run.\n\n    A line: of prose.\n    """'
    )
