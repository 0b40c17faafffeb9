"""The code of docs/extending.md, "A metric", works as the document has it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.conftest import ROOT

PANEL = """
from monitoring.dashboards import render
assert "context_encoder_batch_bytes{" in render("data_path")
"""


def code_blocks() -> list[str]:
    """The Python code of the section, in its order."""
    document = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", document.partition("## A metric\n")[2], flags=re.MULTILINE)[0]
    return [dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)]


def insert(path: Path, block: str, anchor: str, after: str = "") -> None:
    """Puts an indented block before the one place of a file where `anchor` is, and `after` behind the anchor."""
    text = path.read_text(encoding="utf-8")
    assert text.count(anchor) == 1, f"{anchor!r} is not once in {path.name}"
    indented = "".join(f"    {line}" if line.strip() else line for line in block.splitlines(keepends=True))
    path.write_text(text.replace(anchor, f"{indented}{anchor}{after}"), encoding="utf-8")


def test_the_metric_of_the_document_gets_from_its_declaration_to_prometheus(tmp_path: Path) -> None:
    declared, method, panel, check = code_blocks()
    monitoring = tmp_path / "monitoring"
    shutil.copytree(ROOT / "monitoring", monitoring, ignore=shutil.ignore_patterns("__pycache__", "grafana", "report"))
    insert(monitoring / "metrics" / "definitions.py", declared, ")\n\n\ndef label_value")
    insert(monitoring / "metrics" / "run_metrics.py", f"{method}\n", "    def gpu(self")
    insert(monitoring / "dashboards" / "data_path.py", panel, '    return Row("Decoding", [', "batch, ")
    run_in(tmp_path, check)
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed (extra dashboards)")
    run_in(tmp_path, PANEL)


def run_in(folder: Path, code: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
