"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from launch.local.object_store import SeaweedFS
from tests.slurm_cluster import SlurmCluster

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent


LONGEST = [
    *("e2e/test_worlds.py", "e2e/test_slurm.py", "e2e/test_monitoring.py", "e2e/test_recipes.py", "faults/test_chaos.py"),
    *("e2e/test_watchdogs.py", "e2e/test_resume.py", "e2e/test_modes.py", "e2e/test_launch.py", "e2e/test_restarts.py"),
]
"""The files that take minutes: where several workers share the files, these go first, so that all workers end together. One that computes
stands beside one that mostly waits."""


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real photographs: the folder named by CONTEXT_ENCODER_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "imagenet_sample").is_dir():
        pytest.skip(f"no photographs in {folder}: set CONTEXT_ENCODER_DATA to a folder that holds imagenet_sample and tiny_imagenet")
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server on the loopback interface, one for the whole session: make a bucket of your own in it."""
    with SeaweedFS(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A real SLURM of two nodes, n0 and n1, one for the whole session: leave no job in it and both nodes idle."""
    if missing := SlurmCluster.missing():
        pytest.skip(f"no SLURM here: apt-get install {missing}")
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module", autouse=True)
def clients_of_its_own() -> None:
    """fsspec hands the same client to whoever asks with the same options, however the environment has changed since."""
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="fail when a test is skipped that needs no GPU: what continuous integration asks for"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
        assert all(path.exists() for path in places), f"LONGEST names a file that is not there: {LONGEST}"
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--no-skips") or reporter is None:
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if "gpu" not in report.keywords]
    for report in skipped:
        reporter.write_line(f"skipped, which is a failure here: {report.nodeid}: {report.longrepr}", red=True)
    if skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
