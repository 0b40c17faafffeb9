"""Every count that a person reads goes through one function, so that no message says `1 shards`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.counting import counted
from tests.conftest import ROOT

SOURCES = sorted(path for part in ("shards", "pipeline", "monitoring", "launch") for path in (ROOT / part).rglob("*.py"))
ADJECTIVES = "bad|compressed|damaged|earlier|more|older|sound|stratified|unreadable"
NOUNS = (
    "attempts|batches|blocks|bytes|checkpoints|classes|elements|entries|epochs|evaluations|events|failures|figures|files|groups|images|"
    "indexes|lanes|maps|neighbours|nodes|ones|pictures|pixels|problems|ranges|ranks|reads|requests|rows|samples|saves|settings|shards|"
    "steps|tars|tensors|times|values"
)
PLURAL = re.compile(rf" (?:(?:{ADJECTIVES}) )*(?:{NOUNS})\b(?!/)")


@pytest.mark.parametrize(
    ("number", "noun", "written"),
    [
        (1, "shard", "1 shard"),
        (0, "shard", "0 shards"),
        (2, "class", "2 classes"),
        (3, "batch", "3 batches"),
        (2, "index", "2 indexes"),
        (4, "entry", "4 entries"),
        (1281167, "picture", "1,281,167 pictures"),
        (1, "entry", "1 entry"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, written: str) -> None:
    assert counted(number, noun) == written


@pytest.mark.parametrize(("number", "written"), [(1, "1 sample is"), (5, "5 samples are")])
def test_a_verb_goes_with_its_noun(number: int, written: str) -> None:
    assert counted(number, "sample is", "samples are") == written


def plurals(path: Path) -> Iterator[str]:
    """Whole numbers of a file's f-strings with a plural behind them, whatever the number is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for before, value, after in (
            zip([None, *node.values], node.values, node.values[1:], strict=False) if isinstance(node, ast.JoinedStr) else ()
        ):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            layout = ast.unparse(value.format_spec) if value.format_spec else ""
            text = before.value if isinstance(before, ast.Constant) else ""
            measured = re.search("[.>g%]", layout) or re.search(r"(\bx ?|x|=)$", str(text))  # 0.5 s, a column, 8 x 8 pixels, NAME=1
            if not measured and PLURAL.match(str(after.value)):
                yield f"{path.relative_to(ROOT)}:{value.lineno}: {ast.unparse(value.value)}{after.value!r}: use shards.counting.counted"


def test_no_message_has_a_plural_that_stays_one_for_the_number_1() -> None:
    assert [found for path in SOURCES for found in plurals(path)] == []
