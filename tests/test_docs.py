"""Documents and docstrings name things that exist."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PACKAGES = ("shards", "pipeline", "monitoring", "launch")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FOLDERS = r"(?:shards|pipeline|launch|monitoring|tests|benchmarks|docs)"
FILE = re.compile(r"[\w./-]+\.py|(?:[\w.-]+/)+[\w.-]+\.(?:yaml|yml|md|sbatch|sh)")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
DATA = (".html", ".idx", ".json", ".jsonl", ".tar", ".yaml")
"""Endings of files that programs write, which look like dotted names."""


def _targets(node: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module or a class defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    elif isinstance(node, ast.If | ast.Try):
        for item in node.body:
            yield from _targets(item)


@cache
def defined(path: Path) -> frozenset[str]:
    """Names of a module, members of its classes as Class.member."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        names.update(_targets(node))
        if isinstance(node, ast.ClassDef):
            members = {name for item in node.body for name in _targets(item)}
            members |= {item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)}
            names |= {f"{node.name}.{member}" for member in members}
    return frozenset(names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_functions_that_a_document_names_exist(document: Path) -> None:
    named = re.findall(rf"`?({FOLDERS}/[\w./-]+\.(?:py|yaml|yml|md|sbatch|json))(?:::([\w.]+))?", document.read_text())
    for file, name in named:
        path = ROOT / file
        assert path.exists(), f"{document.name} names {file}, which is not there"
        if name:
            assert name in defined(path), f"{document.name} names {name} of {file}, which is not defined there"


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a module, those behind assignments included."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        for item in body if isinstance(body, list) else ():
            if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
                yield item.value.value


@cache
def settings() -> tuple[object, ...]:
    """The settings of a run of each recipe, with their defaults."""
    from pipeline import recipes
    from pipeline.config import parse

    return tuple(parse(recipes.SETTINGS, ["--recipe", recipe, "--data.shards", "x"]) for recipe in recipes.SETTINGS)


def setting(name: str) -> bool:
    """True if a dotted name is a setting of any recipe, such as data.shards."""
    return any(holds_setting(tree, name.split(".")) for tree in settings())


def holds_setting(node: object, parts: list[str]) -> bool:
    """True if a tree of settings has the name."""
    for part in parts:
        if isinstance(node, dict):
            return True  # the keys of a table are the user's
        if not hasattr(node, part):
            return False
        node = getattr(node, part)
    return True


def holds(path: Path, rest: list[str]) -> bool:
    """True if a module or package has the name that is left of a dotted one."""
    if not rest:
        return True
    if path.is_dir():
        inside = any(holds(found, rest[1:]) for found in (path / rest[0], path / f"{rest[0]}.py") if found.exists())
        return inside or holds(path / "__init__.py", rest)
    return path.exists() and ".".join(rest[:2]) in defined(path)


def is_missing(name: str, place: Path) -> bool:
    """True if a name in backticks looks like a file or a name of this repository and is not there.

    Args:
        name: text between the backticks.
        place: file whose docstring has it.
    """
    if FILE.fullmatch(name):
        near = any((folder / name).exists() for folder in (ROOT, place.parent))
        return not near and not any(path.as_posix().endswith(f"/{name}") for path in SOURCES)
    if not DOTTED.fullmatch(name) or name.endswith(DATA) or setting(name):
        return False
    first, *rest = name.split(".")
    if first in PACKAGES:
        return not holds(ROOT / first, rest)
    # a module or a package by its own name, a class, or an object of a class of that name: one of them must have the member
    called = [path for path in SOURCES if path.stem == first] + [path.parent for path in SOURCES if path.parent.name == first]
    members = {f"{each}.{'.'.join(rest)}" for each in (first, first.capitalize())}
    classes = [path for path in SOURCES if any(each.startswith(f"{first}.") for each in defined(path))]
    if called or classes:
        return not any(holds(path, rest) for path in called) and not any(members & defined(path) for path in SOURCES)
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_names_that_a_docstring_names_exist(path: Path) -> None:
    named = {name for text in docstrings(path) for name in re.findall(r"`([^`\s]+)`", text)}
    assert not sorted(name for name in named if is_missing(name.removesuffix("()"), path))


def test_a_name_that_is_not_there_is_found() -> None:
    for name in ("read.PictureReader", "shards.dataset.index.nothing", "pipeline/stream/nothing.py", "order.share", "SampleOrder.share"):
        assert is_missing(name, ROOT / "shards" / "__init__.py")
    for name in ("shards.dataset.index.make", "order.rank_slice", "SampleOrder.take", "data.shards", "torch.anything", "cv2.remap"):
        assert not is_missing(name, ROOT / "shards" / "__init__.py")


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
            assert setting(key.rstrip(".")), f"{document.name} names --{key}, which is no setting"


@pytest.mark.parametrize("place", ["documents", "messages"])
def test_an_extra_is_installed_in_one_way_everywhere(place: str) -> None:
    """From the checkout: a package of the same name elsewhere is not this one."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(path.read_text() for path in (DOCUMENTS if place == "documents" else SOURCES))
    assert "context-encoders[" not in text
    named = re.findall(r"pip install (.*\[\w+\]'?)", text)
    assert len(named) > 3
    assert [each for each in named if not (found := re.search(r"^-e '\.\[(\w+)\]'$", each)) or found[1] not in extras] == []


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
