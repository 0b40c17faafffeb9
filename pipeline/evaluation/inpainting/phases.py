"""Units of work, computed by all ranks together and by several threads of each, until every unit has a part."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from pipeline.evaluation.embedding.network import one_core
from pipeline.evaluation.embedding.units import Unit, in_turn
from pipeline.evaluation.inpainting.parts import Part, write_part
from pipeline.evaluation.part_folder import PartFolder
from pipeline.evaluation.rank import Rank
from shards.console import ProgressReport

_POLL_SECONDS = 0.2


class Stopped(Exception):
    """A signal asked for the end, or another thread's error did."""


class Phase:
    """The parts of one kind of work.

    Args:
        name: plural of what is counted, for the progress.
        setting: setting that names the data set of what is counted.
        parts: folder of the parts.
        sizes: things of each unit, for the progress.
        compute: makes the result of a unit, in one of several threads.
    """

    def __init__(self, name: str, setting: str, parts: PartFolder, sizes: Sequence[int], compute: Callable[[Unit], Part]) -> None:
        self._name, self.setting, self.parts, self._sizes, self._compute = name, setting, parts, sizes, compute
        self.total = sum(sizes)
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(
        self, rank: Rank, workers: int, check: Callable[[], None], finished: Callable[[], bool], bytes_read: Callable[[], float]
    ) -> None:
        """Computes units until all have a part, or the table is whole.

        Args:
            rank: this process among the others.
            workers: threads of this process.
            check: called several times a second; an error that it raises ends the work.
            finished: says whether the table is whole.
            bytes_read: counts the bytes that were read so far, for the progress.

        Raises:
            ExplainedError: a unit can't be computed or written.
        """
        there, read = self._there(), bytes_read()
        report = ProgressReport(self._name, self.total, there, quiet=rank.number > 0)
        try:
            with ThreadPoolExecutor(workers, self._name, one_core) as pool:
                while (missing := self.parts.missing()) and not finished():
                    turn = list(reversed(in_turn(missing, rank.number, rank.world_size)))
                    working: list[Future[None]] = [pool.submit(self._work, turn) for _ in range(workers)]
                    try:
                        while not all(each.done() for each in working):
                            done, _ = wait(working, _POLL_SECONDS, FIRST_EXCEPTION)
                            check()
                            now, now_read = self._there(), bytes_read()
                            report.advance(max(0, now - there), int(now_read - read))
                            there, read = max(there, now), now_read
                            for each in done:
                                each.result()
                    finally:
                        self._over.set()  # the other threads end with their batch
                        wait(working)
                        self._over.clear()
                    for each in working:
                        each.result()
                    if self.parts.missing():
                        check()
                        time.sleep(_POLL_SECONDS)  # for the units of other ranks, or for their ends
        finally:
            report.close()

    def check(self) -> None:
        """Ends the work of a thread.

        Raises:
            Stopped: the work is over.
        """
        if self._over.is_set():
            raise Stopped

    def _work(self, turn: list[Unit]) -> None:
        """Takes one unit after the other, while there are any that no other process has."""
        while True:
            with self._lock:
                if self._over.is_set() or not turn:
                    return
                unit = turn.pop()
            claim = self.parts.claim(unit)
            if claim is None:
                continue
            done = False
            try:
                part = self._compute(unit)
                with self.parts.writing(unit) as file:
                    write_part(file, part, unit, self.parts.facts)
                done = True
            except Stopped:
                return
            finally:
                claim.release(done)

    def _there(self) -> int:
        missing = {unit.number for unit in self.parts.missing()}
        return sum(size for unit, size in zip(self.parts.units, self._sizes, strict=True) if unit.number not in missing)
