"""Fixtures that the whole suite shares, and what its runs are held to: no skips, no slow test among the fast ones."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from launch.local.object_store import SeaweedFS
from shards.local_files import wait_for_lock
from tests.slurm_cluster import SlurmCluster

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
SERVERS = frozenset({"s3", "slurm", "prometheus", "pushgateway", "chromium"})
"""Fixtures that start a server or allow a test to start one: tests that use them get the marker `server`."""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""Names that the browser's program has, in Debian and elsewhere."""
FAST = 5.0
"""Seconds of CPU time, and of wall time on a machine of its own, that a test without the marker `slow` may take."""
LONGEST = [
    *("e2e/test_monitoring.py", "e2e/test_slurm.py", "faults/test_chaos.py", "e2e/test_watchdogs.py", "e2e/test_worlds.py"),
    *("e2e/test_resume.py", "e2e/test_restarts.py", "e2e/test_modes.py", "e2e/test_launch.py", "e2e/test_recipes.py"),
]
"""Files that take minutes. Where several workers share the files these go first, the longest before the others, so that all workers end
together."""
_CPU, _WALL = pytest.StashKey[float](), pytest.StashKey[float]()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real photographs: the folder named by CONTEXT_ENCODER_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "imagenet_sample").is_dir():
        pytest.skip(f"no photographs in {folder}: set CONTEXT_ENCODER_DATA to a folder that holds imagenet_sample and tiny_imagenet")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder by name and returns its path: once for all workers of the session, which only read it afterwards."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made once"

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f".{name} is whole"
        shared.mkdir(exist_ok=True)
        with open(shared / f".{name} lock", "w") as lock:
            wait_for_lock(lock.fileno())
            if not done.exists():
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server on the loopback interface, one for the whole session: make a bucket of your own in it."""
    with SeaweedFS(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A real SLURM of two nodes, n0 and n1, one for the whole session: leave no job in it and both nodes idle."""
    if packages := SlurmCluster.missing():
        pytest.skip(f"no SLURM here: apt-get install {packages}")
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def _needs(package: str, *programs: str) -> None:
    """Skips a test where none of some programs, which a Debian package brings, is installed."""
    if not any(map(shutil.which, programs)):
        pytest.skip(f"{programs[0]} is not installed (Debian: {package})")


@pytest.fixture(scope="session")
def prometheus() -> None:
    """Leave to start the real Prometheus; skips where it is not installed."""
    _needs("prometheus", "prometheus")


@pytest.fixture(scope="session")
def pushgateway() -> None:
    """Leave to start the real Pushgateway; skips where it is not installed."""
    _needs("prometheus-pushgateway", "prometheus-pushgateway")


@pytest.fixture(scope="session")
def chromium() -> None:
    """Leave to start a real Chromium; skips where it is not installed."""
    _needs("chromium", *CHROMIUM)


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Random draws of a test. A failure shows the seed; --seed draws the same again."""
    seed = request.config.getoption("--seed") or str(random.SystemRandom().randrange(1 << 32))
    print(f"drawn with --seed={seed}")
    return random.Random(seed)


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """True where `--long` asks for the whole proof instead of the small version of it."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="module", autouse=True)
def clients_of_its_own() -> None:
    """Empties fsspec's cache of clients, which ignores that the environment has changed since a client was made."""
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="fail when a test is skipped that needs no GPU: what continuous integration asks for"
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="kill a run in tests/faults/test_chaos.py and tests/e2e/test_restarts.py as often as docs/results/kills.md records",
    )
    parser.addoption("--seed", help="draw what tests draw at random as a failed run did, which showed its seed")
    parser.addoption(
        "--only-fast",
        action="store_true",
        help=f"run the tests that need no server and no GPU and take at most {FAST:g} s, and hold them to it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")
    if config.getoption("--only-fast"):
        left_out = [item for item in items if any(item.get_closest_marker(name) for name in ("slow", "server", "gpu"))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
        assert all(path.exists() for path in places), f"LONGEST names a file that is not there: {LONGEST}"
        items.sort(key=lambda item: places.get(item.path, len(places)))


def _cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    item.stash[_CPU], item.stash[_WALL] = _cpu_seconds(), time.monotonic()
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        report.user_properties += [("cpu", _cpu_seconds() - item.stash[_CPU]), ("wall", time.monotonic() - item.stash[_WALL])]
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # in a worker, whose tests are reported to the session that started it
        return
    failures = skips(reporter.stats.get("skipped", [])) if session.config.getoption("--no-skips") else []
    unmarked, slow = over_time(reporter.stats.get("passed", []))
    failures += unmarked if session.config.getoption("--only-fast") else []
    reporter.ensure_newline()
    for line in slow:
        reporter.write_line(line)
    for line in failures:
        reporter.write_line(line, red=True)
    if failures:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def skips(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Returns a line for each test that was skipped although it needs no GPU."""
    return [f"skipped, which is a failure here: {each.nodeid}: {each.longrepr}" for each in reports if "gpu" not in each.keywords]


def over_time(reports: Iterable[pytest.TestReport]) -> tuple[list[str], list[str]]:
    """Returns a line for each test without a marker that took more than FAST of CPU time, and for each one that took it on the clock.

    The second kind is no failure: on a busy machine every test takes long.
    """
    busy, long = [], []
    for each in reports:
        taken = dict(each.user_properties)
        if each.when != "call" or {"slow", "server", "gpu"} & set(each.keywords):
            continue
        if taken["cpu"] > FAST:
            busy.append(f"took {taken['cpu']:.1f} s of CPU time, mark it slow: {each.nodeid}")
        elif taken["wall"] > FAST:
            long.append(f"took {taken['wall']:.1f} s without being marked slow: {each.nodeid}")
    return busy, long
