"""The rendezvous of the ranks of a run, which names the ranks that are missing.

Rank 0 opens a store, or its launcher has one. Every rank announces itself in the store, so each of them can name those that are missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from shards.errors import ExplainedError

_FIRST_LIST, _LONGEST_PAUSE = 1.0, 60.0  # seconds before a list of missing ranks; rare, because a list asks for every rank and all ranks do
_POLL_SECONDS = 0.1
_MOST_NAMED = 8  # ranks that a message names; the others are counted


class RanksMissing(ExplainedError):
    """Not every rank joined in time; the message names those that did not."""


def connect(address: str, port: int, size: int, is_master: bool, timeout: timedelta, report: Callable[[str], None] | None) -> TCPStore:
    """Opens the store of the run, or connects to it.

    Args:
        address: address of the machine that has the store.
        port: port of the store.
        size: number of ranks of the run.
        is_master: whether this process opens the store.
        timeout: longest wait for another process to open it.
        report: called with a line that says what this rank waits for.

    Raises:
        RanksMissing: the store was not opened in time.
    """
    if report is not None:
        report(f"waiting for rank 0 or its launcher to open {address}:{port}")
    try:
        return TCPStore(address, port, size, is_master=is_master, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        if is_master:
            raise
        raise RanksMissing(
            f"{address}:{port}, where the ranks meet, was not opened in {timeout.total_seconds() / 60:.3g} minutes. Was rank 0 started, "
            f"and can its machine be reached from here? ({_first_line(error)})"
        ) from error


def meet(store: Store, rank: int, size: int, timeout: timedelta, report: Callable[[str], None] | None) -> None:
    """Waits until every rank has joined.

    Args:
        store: store that all ranks use, without the keys of other attempts.
        rank: rank of this process.
        size: number of ranks of the run.
        timeout: longest wait.
        report: called with a line that names the missing ranks, again and again while there are any.

    Raises:
        RanksMissing: some ranks did not join in time.
    """
    store.set(f"joined/{rank}", "")
    if store.add("joined", 1) == size:
        store.set("complete", "")
    where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    began = time.monotonic()
    next_list = began + _FIRST_LIST

    def missing() -> str:
        return _named([other for other in range(size) if not store.check([f"joined/{other}"])])

    while not store.check(["complete"]):
        now = time.monotonic()
        if now >= next_list:
            next_list = now + min(now - began, _LONGEST_PAUSE)
            if report is not None:
                report(f"waiting for {missing()} of {size} to join at {where}")
        if now - began > timeout.total_seconds():
            raise RanksMissing(
                f"{missing()} of {size} did not join at {where} in {timeout.total_seconds() / 60:.3g} minutes. See the messages of their "
                "start; where they need longer, set training.timeout_minutes"
            )
        time.sleep(_POLL_SECONDS)  # not store.wait, which logs every wait that times out


def _named(ranks: list[int]) -> str:
    if not ranks:
        return "the others"
    shown = ", ".join(map(str, ranks[:_MOST_NAMED])) + (f" and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
