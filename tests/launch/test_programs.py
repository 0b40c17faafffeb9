"""The programs of launch/ run the code beside them, whatever PYTHONPATH holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODULES = {ROOT / "launch/__main__.py", *(ROOT / "launch/local").glob("*.py")}
"""Files that are started with `python -m`, for which Python does this itself."""
PROGRAMS = [path for path in sorted((ROOT / "launch").rglob("*.py")) if "__main__" in path.read_text() and path not in MODULES]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_puts_its_own_checkout_before_every_other_project(program: Path) -> None:
    above = len(program.relative_to(ROOT).parts) - 1
    first = re.split(r"^(?:from|import) (?:pipeline|monitoring|shards|launch)\b", program.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    assert f"\nsys.path.insert(0, str(Path(__file__).resolve().parents[{above}]))" in first
