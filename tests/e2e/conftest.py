"""Data sets of real photographs, made once for all workers of a session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import ROOT
from tests.datasets import photographs, write_dataset

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


def build(*arguments: str) -> None:
    """Runs `python -m shards build ARGUMENTS`."""
    done = subprocess.run([sys.executable, "-m", "shards", "build", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def imagenet_shards(data_folder: Path, made_once: MadeOnce) -> Path:
    """800 ImageNet photographs at a shorter side of 256, in 7 shards."""
    return made_once("imagenet sample", lambda folder: build(str(data_folder / "imagenet_sample"), str(folder), "--shard-size", "128"))


@pytest.fixture(scope="session")
def tiny_shards(data_folder: Path, made_once: MadeOnce) -> Path:
    """The 2,500 training pictures of the first 5 classes in tiny_imagenet_40.tar, with these classes, in 3 shards."""
    archive = data_folder / "tiny_imagenet" / "tiny_imagenet_40.tar"
    options = ["--include", "train/n01*", "--label-pattern", "^train/([^/]+)/", "--shard-size", "1000"]
    return made_once("tiny", lambda folder: build(str(archive), str(folder), *options))


@pytest.fixture(scope="session")
def shards(made_once: MadeOnce) -> Path:
    """60 crops of 4 photographs in 3 shards of 25, 30 and 5, in a folder whose name is not plain ASCII."""
    return made_once("pictures ä", lambda folder: write_dataset(folder, photographs(60, 140, 160), [25, 30, 5]))


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The option for an environment whose Python has imported everything already, for jobs whose start is not what a test looks at.

    Its launcher is a real one, whose children are the ranks: SLURM signals what descends from a job's script.
    """
    programs = tmp_path_factory.mktemp("environment") / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(warm.interpreter())
    start = f"import sys\nfrom accelerate.commands.accelerate_cli import main\nsys.executable = {warm.interpreter()!r}\nmain()\n"
    (programs / "accelerate").write_text(f"#!{sys.executable}\n{start}")
    (programs / "accelerate").chmod(0o755)
    return ["--venv", str(programs.parent)]
