"""Making the text of the metrics, which takes milliseconds and may wait for seconds: in one thread beside the event loop, and once for all
who ask at the same time."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

from monitoring.endpoint.http_head import answer

Exposition = Callable[[bool, float, float], bytes]
"""Gives the metrics as text: OpenMetrics 1.0.0 where True is asked for, else Prometheus's 0.0.4. The numbers: seconds for which it is
waited for, infinite where nobody has said so; and when it was asked for, on the monotonic clock: what was collected since then will do."""

_log = logging.getLogger(__name__)


@dataclass
class _Waiting:
    form: bool
    asked: float
    until: float
    answer: asyncio.Future[bytes]


class SharedText:
    """All methods are for the thread of the event loop.

    Args:
        exposition: gives the text. It is called in a thread of its own, once at a time.
        spend: called from that thread with the processor time that was taken.
    """

    def __init__(self, exposition: Exposition, spend: Callable[[float], None]) -> None:
        self._exposition, self._spend = exposition, spend
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="metrics-text")
        self._executor.submit(int).result()  # has its thread now: later this machine may have no more
        self._waiting: list[_Waiting] = []
        self._is_held = self._is_making = False

    def ask(self, form: bool, patience: float = math.inf) -> asyncio.Future[bytes]:
        """The whole answer to a request.

        Args:
            form: as `Exposition` has it.
            patience: seconds for which the client waits.
        """
        now = time.monotonic()
        waiting = _Waiting(form, now, now + patience, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._make_next()
        return waiting.answer

    def hold(self) -> None:
        """More are about to ask: nothing is begun until `release`."""
        self._is_held = True

    def release(self) -> None:
        """Nobody else is about to ask."""
        self._is_held = False
        self._make_next()

    def _make_next(self) -> None:
        if self._is_held or self._is_making or not self._waiting:
            return
        waiting, self._waiting, self._is_making = self._waiting, [], True
        making = asyncio.get_running_loop().run_in_executor(self._executor, self._make, waiting)
        making.add_done_callback(lambda made: self._hand_out(waiting, made))

    def _make(self, waiting: list[_Waiting]) -> dict[bool, bytes]:
        """Form -> answer."""
        began, asked = time.thread_time(), max(each.asked for each in waiting)
        until = max(each.until for each in waiting)  # not the least: who is in a hurry must not have ranks called silent for all
        try:
            answers = {}
            for form in {each.form for each in waiting}:
                text = self._exposition(form, until - asked, asked)
                answers[form] = answer(HTTPStatus.OK, text, CONTENT_TYPE_LATEST if form else CONTENT_TYPE_PLAIN_0_0_4)
        except Exception:
            _log.exception("the metrics can't be read")
            broken = answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"the metrics can't be read: see the log of the process\n")
            return {False: broken, True: broken}
        finally:
            self._spend(time.thread_time() - began)
        return answers

    def _hand_out(self, waiting: list[_Waiting], made: asyncio.Future[dict[bool, bytes]]) -> None:
        self._is_making = False
        if made.cancelled():
            return
        answers = made.result()
        for each in waiting:
            if not each.answer.done():  # the client has not run out of time
                each.answer.set_result(answers[each.form])
        self._make_next()

    def close(self) -> None:
        """Waits for the thread; nobody gets anything else. Nobody may ask any more."""
        self._waiting.clear()
        self._executor.shutdown()
