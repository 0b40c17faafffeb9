"""Data sets of real photographs, built once by the real command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def build(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "shards", "build", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def imagenet_shards(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 ImageNet photographs at a shorter side of 256, in 7 shards."""
    folder = tmp_path_factory.mktemp("imagenet sample")
    build(str(data_folder / "imagenet_sample"), str(folder), "--shard-size", "128")
    return folder


@pytest.fixture(scope="session")
def tiny_shards(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 20,000 training pictures of tiny_imagenet_40.tar with their classes, in 10 shards."""
    folder = tmp_path_factory.mktemp("tiny")
    archive = data_folder / "tiny_imagenet" / "tiny_imagenet_40.tar"
    build(str(archive), str(folder), "--include", "train/*", "--label-pattern", "^train/([^/]+)/")
    return folder
