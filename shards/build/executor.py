"""Runs tasks: one after the other in this process, or in a pool of processes that survives the death of any of them.

A process that is killed (usually for memory) takes the whole pool down and does not say which task was to blame. The tasks that were
running are tried once more, each alone in a process of its own. A task that kills that process too is reported, and all others are done.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from shards.build.plan import ShardTask
from shards.build.task import Progress, TaskRecord
from shards.errors import ShardError

Job = Callable[[ShardTask, Progress], TaskRecord]
_POLL_SECONDS = 0.25
_TOO_BIG = "most likely the memory is too small for one of its pictures: lower --max-pixels, or use fewer --workers"


@dataclass(frozen=True)
class Failure:
    """A task that was not done. `final` means that other tasks would most likely fail for the same reason."""

    shard: str
    reason: str
    final: bool


Outcome = TaskRecord | Failure


class _Stopped(Exception):
    """The build was interrupted."""


def run_here(tasks: Iterable[ShardTask], job: Job, progress: Progress) -> Generator[Outcome, None, None]:
    """Runs tasks one after the other in this process."""
    for task in tasks:
        yield _attempt(job, task, progress)


def run_in_pool(tasks: Iterable[ShardTask], job: Job, workers: int, progress: Progress) -> Generator[Outcome, None, None]:
    """Runs tasks in `workers` processes; results come in no particular order. Closing the iterator stops them.

    Args:
        tasks: tasks to run, taken as processes become free.
        job: function that runs one task; must be picklable.
        workers: number of processes.
        progress: called in this process with (pictures, bytes) done since the previous call.
    """
    rest, suspects = iter(tasks), list[ShardTask]()
    while not (yield from _run_pool(rest, job, workers, progress, suspects)):
        pass  # a process died: a new pool goes on with the rest
    for task in suspects:
        died: list[ShardTask] = []
        yield from _run_pool(iter([task]), job, 1, progress, died)
        if died:
            yield Failure(task.shard, f"its process was killed, twice: {_TOO_BIG}", final=False)


def _run_pool(
    tasks: Iterator[ShardTask], job: Job, workers: int, progress: Progress, lost: list[ShardTask]
) -> Generator[Outcome, None, bool]:
    """Yields results until the tasks end (returns True) or a process dies (returns False; running tasks are appended to `lost`)."""
    context = multiprocessing.get_context("spawn")  # s3fs clients and threads don't survive a fork
    board = _Board(context, slots=workers + 1)  # one task more than processes, so that no process waits for this one
    running: dict[Future[Outcome], tuple[ShardTask, int]] = {}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(board.shared,))
    try:
        broken = False
        while not broken:
            while board.free and (task := next(tasks, None)) is not None:
                try:
                    future = pool.submit(_attempt_in_worker, job, task, board.free[-1])
                except BrokenProcessPool:
                    lost.append(task)
                    broken = True
                    break
                running[future] = (task, board.take())
            if not running:
                break
            done, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                task, slot = running.pop(future)
                died = isinstance(future.exception(), BrokenProcessPool)
                board.give_back(slot, count=not died)
                if died:
                    lost.append(task)
                    broken = True
                else:
                    yield future.result()
            progress(*board.news())
        lost.extend(task for task, _ in running.values())
        return not broken
    finally:
        board.stop()
        pool.shutdown(wait=True, cancel_futures=True)


class _Board:
    """Shared memory in which each task counts its pictures, without locks, because a process killed with a lock would stop all others."""

    def __init__(self, context: Any, slots: int) -> None:
        self.shared = context.RawArray("q", 2 * slots + 1)  # (pictures, bytes) of each slot, and the stop flag
        self.free = list(range(slots))
        self._counted = [0, 0]  # (pictures, bytes) of tasks that ended
        self._reported = [0, 0]

    def take(self) -> int:
        """Takes a slot for a task."""
        return self.free.pop()

    def give_back(self, slot: int, count: bool) -> None:
        """Frees a slot and keeps its counts if `count`; those of a lost task are dropped."""
        for part in (0, 1):
            self._counted[part] += self.shared[2 * slot + part] if count else 0
            self.shared[2 * slot + part] = 0
        self.free.append(slot)

    def news(self) -> tuple[int, int]:
        """Returns (pictures, bytes) since the previous call; negative after a task was lost."""
        now = [self._counted[part] + sum(self.shared[part:-1:2]) for part in (0, 1)]
        change = now[0] - self._reported[0], now[1] - self._reported[1]
        self._reported = now
        return change

    def stop(self) -> None:
        """Makes every running task stop at its next picture."""
        self.shared[-1] = 1


def _attempt(job: Job, task: ShardTask, progress: Progress) -> Outcome:
    try:
        return job(task, progress)
    except ShardError as error:
        return Failure(task.shard, str(error), final=True)
    except OSError as error:
        return Failure(task.shard, f"{type(error).__name__}: {error}", final=True)
    except _Stopped:
        return Failure(task.shard, "interrupted", final=True)
    except MemoryError:
        return Failure(task.shard, _TOO_BIG, final=False)


_board: Any  # the shared memory, in a process of the pool


def _start_worker(shared: Any) -> None:
    global _board  # noqa: PLW0603 - an initialiser has no other way to pass something to the tasks of its process
    _board = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which stops the tasks in order
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _attempt_in_worker(job: Job, task: ShardTask, slot: int) -> Outcome:
    def report(pictures: int, size: int) -> None:
        if _board[-1]:
            raise _Stopped
        _board[2 * slot] += pictures
        _board[2 * slot + 1] += size

    return _attempt(job, task, report)
