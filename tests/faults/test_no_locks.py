"""A file system that can't lock files: Lustre without -o flock (ENOSYS), NFS without lockd (ENOLCK), and others (EOPNOTSUPP)."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.evaluation.embedding.part_folder import PartFolder
from pipeline.stream.batch.quarantine import Quarantine
from pipeline.stream.counters import Counters
from pipeline.stream.read.cache_folder import CacheFolder
from pipeline.stream.read.samples import BadSample
from pipeline.training.record.run_folder import RunFolder, RunFolderError
from shards.dataset.workplace import scratch_folder
from shards.errors import ExplainedError, StoreError
from shards.local_files import file_system
from shards.store import Store


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=lambda number: errno.errorcode[number])
def reason(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Takes flock away, as no file system of a test machine does, and returns the kernel's reason."""

    def flock(_file: int, _operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return os.strerror(request.param)


@pytest.mark.parametrize(
    ("use", "error", "advice"),
    [
        (lambda path: RunFolder(path, writes=True), RunFolderError, "choose another with --run"),
        (lambda path: CacheFolder(path, 10, Counters()), StoreError, "Choose another with data.cache"),
    ],
    ids=["run folder", "cache"],
)
def test_what_needs_a_lock_says_in_one_line_which_file_system_has_none(
    use: Callable[[Path], object], error: type[ExplainedError], advice: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as refused:
        use(tmp_path / "here")
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "here"))
    assert reason in message
    assert file_system(tmp_path) in message
    assert advice in message
    assert "\n" not in message


@pytest.mark.usefixtures("reason")
def test_what_is_right_without_a_lock_goes_on(tmp_path: Path) -> None:
    with scratch_folder(Store(str(tmp_path / "build"))) as folder:
        assert folder == str(tmp_path / "build")
    PartFolder(tmp_path / "parts", {"made": "from this"}, []).open()
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 10, 0.5, Counters())
    quarantine.add(BadSample(3, "a", "shard-000000.tar", "digest", "is not what the index says"))
    assert len(Quarantine(tmp_path / "quarantine.jsonl", 10, 0.5, Counters())) == 1


def test_the_file_system_of_a_file_is_the_innermost_that_is_mounted_above_it(tmp_path: Path) -> None:
    assert file_system(Path("/proc/self/mounts")) == "proc at /proc"
    kind, _, point = file_system(tmp_path / "not there yet").partition(" at ")
    assert kind
    assert (tmp_path / "not there yet").is_relative_to(point)
