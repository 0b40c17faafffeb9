"""A batch in the making: when it is ready, and what becomes of it when nobody wants it."""

from __future__ import annotations

from concurrent.futures import Future

from pipeline.stream.batch.batch import Pending


def pending() -> Pending:
    made = Pending(1, ((0, 0),))
    made.planned = Future()
    return made


def test_it_is_ready_when_it_is_planned_and_its_tasks_are_done() -> None:
    batch, task = pending(), Future[None]()
    assert not batch.done()  # nobody knows yet how many tasks there will be
    batch.tasks.append(task)
    batch.planned.set_result(None)
    assert not batch.done()
    task.set_result(None)
    assert batch.done()


def test_abandoning_cancels_what_nobody_has_begun() -> None:
    batch, begun, waiting, asked = pending(), Future[None](), Future[None](), Future[bytes]()
    begun.set_running_or_notify_cancel()
    batch.tasks += [begun, waiting]
    batch.fetched[3] = asked
    batch.abandon()
    assert batch.abandoned
    assert batch.planned.cancelled()
    assert waiting.cancelled()
    assert asked.cancelled()
    assert not begun.cancelled()
