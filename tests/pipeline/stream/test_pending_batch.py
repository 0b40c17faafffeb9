"""A batch in the making: when it is ready, and what is cancelled when it is abandoned."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import torch

from pipeline.stream.batch.batch import Filling, LoaderClosed, Pending
from pipeline.stream.plan import BatchPlan


def filling() -> Filling:
    plan = BatchPlan(1, 0, ((0, 0),), ())
    return Filling(plan, torch.zeros((0, 2, 2, 3), dtype=torch.uint8), torch.zeros((0, 2, 2), dtype=torch.bool), labelled=False)


def test_it_is_ready_when_it_is_planned_and_its_tasks_are_done() -> None:
    planned, made, task = Future[Filling](), filling(), Future[None]()
    batch = Pending(((0, 0),), planned)
    assert not batch.done()  # nobody knows yet how many tasks there will be
    made.tasks.append(task)
    planned.set_result(made)
    assert not batch.done()
    task.set_result(None)
    assert batch.done()
    assert len(batch.batch(lambda: None).images) == 0


def test_abandoning_cancels_what_nobody_has_begun() -> None:
    planned, made = Future[Filling](), filling()
    begun, waiting, asked = Future[None](), Future[None](), Future[bytes]()
    begun.set_running_or_notify_cancel()
    made.tasks += [begun, waiting]
    made.fetched[3] = asked
    planned.set_result(made)
    Pending(((0, 0),), planned).abandon()
    assert waiting.cancelled()
    assert asked.cancelled()
    assert not begun.cancelled()


def test_a_plan_in_progress_cancels_its_tasks_at_its_end() -> None:
    planned, made, task = Future[Filling](), filling(), Future[None]()
    planned.set_running_or_notify_cancel()
    Pending(((0, 0),), planned).abandon()
    made.tasks.append(task)
    planned.set_result(made)
    assert task.cancelled()


@pytest.mark.parametrize("fails", [False, True])
def test_a_plan_that_was_not_made_is_ready_and_says_why(fails: bool) -> None:
    planned = Future[Filling]()
    batch = Pending(((0, 0),), planned)
    if fails:
        planned.set_exception(ValueError("no such batch"))
    else:
        batch.abandon()
    assert batch.done()
    with pytest.raises(ValueError if fails else LoaderClosed):
        batch.batch(lambda: None)
    batch.abandon()
