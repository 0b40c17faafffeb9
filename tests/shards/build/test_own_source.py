"""The source of docs/extending.md works as it stands there: one file among the sources, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.shards.trees import classed, members, write_folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the package with the document's source in it."""
    section = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split("## A source\n")[1].split("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    shutil.copytree(ROOT / "shards", tmp_path / "project" / "shards", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "project" / "shards" / "build" / "sources" / "table.py").write_text(found[1], encoding="utf-8")
    return tmp_path / "project"


def build(project: Path, source: Path, destination: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shards", "build", str(source), str(destination), "--resize", "none", "--workers", "0"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=project, env=environment)


def test_a_data_set_is_built_from_the_source_of_the_document(project: Path, tmp_path: Path) -> None:
    pictures = dict(zip(["c.jpg", "a.jpg", "deep/b.jpg", "unnamed.jpg"], classed(4).values(), strict=True))
    labels = {"c.jpg": "sea", "a.jpg": "sky", "deep/b.jpg": "sea"}
    folder = write_folder(tmp_path / "in", pictures)
    (folder / "table.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in labels.items()))
    done = build(project, folder / "table.csv", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["classes"] == ["sea", "sky"]
    stored = {json.loads(sample["json"])["source"]: sample for sample in members(tmp_path / "out").values()}
    assert {name: sample["jpg"] for name, sample in stored.items()} == {f"{label}/{path}": pictures[path] for path, label in labels.items()}
    assert {name: sample["cls"] for name, sample in stored.items()} == {"sea/c.jpg": b"0", "sea/deep/b.jpg": b"0", "sky/a.jpg": b"1"}
    # the sources that were there before still accept what is theirs
    assert build(project, folder, tmp_path / "all").returncode == 0
    assert len(members(tmp_path / "all")) == len(pictures)


def test_its_errors_reach_the_person_as_one_line(project: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,label\nnowhere.jpg,sea\n")
    done = build(project, tmp_path / "table.csv", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/table.csv: line 2 names nowhere.jpg, which is not there\n"
