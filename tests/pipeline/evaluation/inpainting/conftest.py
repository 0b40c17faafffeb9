"""A run, its data set, and its table of inpainting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.evaluation.inpainting.work import evaluate
from tests.datasets import photographs, write_dataset
from tests.pipeline.evaluation.inpainting.runs import settings, write_run

COUNTS = [50, 40, 30]


def run_and_data(folder: Path) -> None:
    write_dataset(folder / "set", photographs(sum(COUNTS), 80, 72), COUNTS)
    write_run(folder / "run", folder / "set")
    write_dataset(folder / "other", photographs(9, 80, 90), [9])
    assert evaluate(settings(folder, folder / "expected")).finished


@pytest.fixture(scope="module")
def given(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a run, its data set, another data set of 9 pictures, and the table of the 12 pictures that the run holds back."""
    return made_once("table of inpainting", run_and_data)
