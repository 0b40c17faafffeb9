"""Data sets need nothing of the pipeline, not even a module that is imported by its name at run time."""

from __future__ import annotations

import ast
import re

from tests.conftest import ROOT

STARTED = {"shards/shapes/command.py": "pipeline.masking"}
"""Programs that a command starts where it is asked to, by the file that starts them."""


def test_no_file_names_a_module_that_stands_behind_the_shards() -> None:
    """import-linter sees import statements alone; this finds names of modules in strings."""
    for path in sorted((ROOT / "shards").rglob("*.py")):
        started = STARTED.get(str(path.relative_to(ROOT)))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != started:
                assert not re.fullmatch(r"(pipeline|monitoring|launch)(\.\w+)*", node.value), f"{path}, line {node.lineno}"
