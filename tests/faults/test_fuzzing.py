"""10,000 damaged tars, indexes, manifests, pictures and data sets: a typed error or the right samples, never anything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CASES = {"tars": 3000, "indexes": 2000, "manifests": 2000, "crops": 1500, "stored": 1100, "epochs": 400}


def fuzz(kind: str, count: int, first: int = 0) -> tuple[int, str, str]:
    """Exit status, the last case that was started, and what was said, of a process that goes through the cases."""
    command = [sys.executable, "-m", "tests.faults.fuzzing", kind, str(first), str(count)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=200, check=False)
    lines = found.stdout.decode().splitlines()
    return found.returncode, lines[-1] if lines else "no case", found.stderr.decode(errors="replace")[-6000:]


def test_there_are_ten_thousand() -> None:
    assert sum(CASES.values()) == 10_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_damage_gives_a_typed_error_or_the_right_samples(kind: str) -> None:
    status, last, said = fuzz(kind, CASES[kind])
    assert status == 0, f"case `python -m tests.faults.fuzzing {last}` ended with {status} (negative: the signal that killed it):\n{said}"
    assert last == f"all {CASES[kind]} cases of {kind}"
