"""A pool that outlives its processes."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from shards.build.executor import Failure, run_here, run_in_pool
from shards.build.picture import PictureRules
from shards.build.plan import ShardTask
from shards.build.task import Progress, TaskRecord
from shards.errors import StoreError


def tasks(count: int) -> list[ShardTask]:
    return [ShardTask(index, f"shard-{index:06d}.tar", (), (), PictureRules(), "digest") for index in range(count)]


def job(
    task: ShardTask, progress: Progress, folder: str, always: frozenset[int], once: frozenset[int], refuse: frozenset[int]
) -> TaskRecord:
    marker = Path(folder) / str(task.index)
    first = not marker.exists()
    marker.touch()
    if task.index in always or (task.index in once and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.index in refuse:
        raise StoreError("no such bucket")
    progress(3, 100)
    return TaskRecord(task.index, task.digest, None, 0, ())


def doing(folder: Path, always: set[int] = frozenset(), once: set[int] = frozenset(), refuse: set[int] = frozenset()) -> functools.partial:  # type: ignore[assignment,type-arg]
    return functools.partial(job, folder=str(folder), always=frozenset(always), once=frozenset(once), refuse=frozenset(refuse))


def test_a_task_whose_process_dies_once_is_done_again_and_one_that_always_dies_is_named(tmp_path: Path) -> None:
    reported = [0, 0]

    def progress(pictures: int, size: int) -> None:
        reported[0] += pictures
        reported[1] += size

    outcomes = list(run_in_pool(tasks(9), doing(tmp_path, always={4}, once={2}), 2, progress))
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    done = sorted(outcome.index for outcome in outcomes if isinstance(outcome, TaskRecord))
    assert [failure.shard for failure in failures] == ["shard-000004.tar"]
    assert "killed, twice" in failures[0].reason
    assert not failures[0].final
    assert done == [0, 1, 2, 3, 5, 6, 7, 8]
    assert reported == [8 * 3, 8 * 100]


def test_an_error_in_a_task_comes_back_with_its_message(tmp_path: Path) -> None:
    for outcomes in (
        list(run_here(tasks(2), doing(tmp_path, refuse={1}), lambda pictures, size: None)),
        list(run_in_pool(tasks(2), doing(tmp_path, refuse={1}), 1, lambda pictures, size: None)),
    ):
        assert [outcome for outcome in outcomes if isinstance(outcome, Failure)] == [Failure("shard-000001.tar", "no such bucket", True)]


def test_tasks_are_not_taken_far_ahead(tmp_path: Path) -> None:
    taken = 0

    def counted():  # type: ignore[no-untyped-def]
        nonlocal taken
        for task in tasks(50):
            taken += 1
            yield task

    outcomes = run_in_pool(counted(), doing(tmp_path), 1, lambda pictures, size: None)
    next(outcomes)
    assert taken <= 4
    outcomes.close()
    assert taken <= 4


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_the_results_stops_the_processes(tmp_path: Path, workers: int) -> None:
    import multiprocessing

    outcomes = run_in_pool(tasks(50), doing(tmp_path), workers, lambda pictures, size: None)
    next(outcomes)
    outcomes.close()
    assert not multiprocessing.active_children()
