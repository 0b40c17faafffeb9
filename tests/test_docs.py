"""What the documents name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = r"(?:shards|pipeline|launch|monitoring|tests|benchmarks|docs)"


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_functions_that_a_document_names_exist(document: Path) -> None:
    named = re.findall(rf"`?({FOLDERS}/[\w./-]+\.(?:py|yaml|yml|md|sbatch|json))(?:::([\w.]+))?", document.read_text())
    for file, name in named:
        path = ROOT / file
        assert path.exists(), f"{document.name} names {file}, which is not there"
        if name:
            assert name in defined(path), f"{document.name} names {name} of {file}, which is not defined there"


def test_the_tour_names_the_files_it_promises() -> None:
    named = re.findall(r"`([\w/]+\.py)::", (ROOT / "docs" / "tour.md").read_text())
    assert len(named) > 20
    for folder in ("shards", "pipeline/stream", "pipeline/masking", "pipeline/model", "pipeline/recipes", "pipeline/training"):
        assert any(name.startswith(folder) for name in named)


def test_settings_that_the_documents_and_configurations_name_exist() -> None:
    from pipeline import recipes
    from pipeline.config import parse

    for path in sorted((ROOT / "launch" / "configs").glob("*.yaml")):
        parse(recipes.SETTINGS, ["--config", str(path), "--data.shards", "x"])
    for document in DOCUMENTS:
        for key in re.findall(r"--((?:data|training|checkpoint|monitoring|schedule|method)\.[\w.]+)", document.read_text()):
            node: object = parse(recipes.SETTINGS, ["--data.shards", "x"])
            for part in key.rstrip(".").split("."):
                assert hasattr(node, part), f"{document.name} names --{key}, which is no setting"
                node = getattr(node, part)


def test_metrics_that_the_documents_name_are_declared() -> None:
    from monitoring.metrics.definitions import DEFINITIONS, PREFIX

    parts = ("", "_bucket", "_count", "_sum")
    declared = {
        PREFIX + definition.name + part for definition in DEFINITIONS for part in (parts if definition.kind == "histogram" else ("",))
    }
    declared.add(f"{PREFIX}build_info")
    for document in DOCUMENTS:
        for name in re.findall(rf"\b{PREFIX}[a-z_]+", document.read_text()):
            assert name in declared, f"{document.name} names {name}, which is no metric"
