"""The metrics of all ranks of a node, asked of each rank at the time of a scrape and put together.

Ranks are asked at the same time and have a few seconds, less where whoever asks waits for less: one that is dead or hangs costs a scrape
that long once, half a second from then on, and its own metrics, nothing else. It is reported by `context_encoder_rank_up` 0, and what it
said before is not said again. However many ask, ranks are asked once a second at most, and nobody is given what was collected before they
asked. What is not a series of the rank that was asked is dropped.
"""

from __future__ import annotations

import json
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitoring.endpoint.rank_socket import connect
from monitoring.endpoint.server import encode
from monitoring.metrics.definitions import DEFINITIONS, PREFIX

RANK_SECONDS = 3.0
"""What a rank gets to answer, or half the time for which the client waits where that is less: a scrape that waits for another one and then
for a rank that hangs is done in time."""
LEAST_SECONDS = 0.5
"""What it gets at least, whatever a client says: a rank that is well is not called silent."""
SILENT_SECONDS = 0.5
"""What a rank gets that did not answer in time before and has not since."""
PAUSE_SECONDS = 1.0
"""Least time from the beginning of one collection to that of the next."""
LARGEST_ANSWER = 16 * 2**20
_MOST_SECONDS = 0.1  # that are believed for an answer
RANK_UP = next(definition for definition in DEFINITIONS if definition.name == "rank_up")


@dataclass
class _Collection:
    """What the ranks said once: when they were asked, on the monotonic clock, and the texts that were made of it so far."""

    began: float
    families: list[Metric]
    texts: dict[bool, bytes] = field(default_factory=dict)


class NodeCollector(Collector):
    """Any thread may call any method.

    Args:
        sockets: rank -> where it answers (`monitoring/endpoint/rank_socket.py`).
        run: name of the run, for ranks that do not answer.
        node: name of this machine, likewise.
        attempt: of the run; what a process of another one answers is not taken.
        spend: called with the processor time that the ranks say their answers took, in seconds.
    """

    def __init__(
        self, sockets: Mapping[int, Path], *, run: str, node: str, attempt: int, spend: Callable[[float], None] = lambda _: None
    ) -> None:
        self._sockets = dict(sorted(sockets.items()))
        self._run, self._node, self._attempt, self._spend = run, node, attempt, spend
        self._done, self._collecting = threading.Condition(), False
        self._encoding = threading.Lock()
        self._last = _Collection(-1e9, [])
        self._unanswered: dict[int, socket.socket] = {}  # only for whoever collects

    def collect(self) -> Iterator[Metric]:
        """The families of all ranks, of a collection that began after the call."""
        yield from self._collection().families

    def exposition(self, form: bool, timeout: float = math.inf, asked: float | None = None) -> bytes:
        """Their text. Many that ask at the same time share one.

        Args:
            form: OpenMetrics where it is True, else Prometheus's own.
            timeout: seconds for which the text is waited for, from when it was asked for.
            asked: when that was, on the monotonic clock; None for now. The text is of a collection that began later.
        """
        collection = self._collection(timeout, asked)
        with self._encoding:
            text = collection.texts.get(form)
            if text is None:
                text = collection.texts[form] = encode(_Collected(collection.families), form)
        return text

    def _collection(self, timeout: float = math.inf, asked: float | None = None) -> _Collection:
        asked = time.monotonic() if asked is None else asked
        with self._done:
            while self._last.began < asked:
                if not self._collecting:
                    self._collecting = True
                    break
                self._done.wait()
            else:
                return self._last
        found = None
        try:
            time.sleep(max(0.0, self._last.began + PAUSE_SECONDS - time.monotonic()))
            began = time.monotonic()
            seconds = min(RANK_SECONDS, max(LEAST_SECONDS, (asked + timeout - began) / 2))
            found = _Collection(began, self._merge(_ask(self._sockets, seconds, self._unanswered)))
        finally:
            with self._done:  # all that asked before it began take it, one of the others is the next to collect
                self._last, self._collecting = found or self._last, False
                self._done.notify_all()
        return found

    def _merge(self, answers: Mapping[int, bytes]) -> list[Metric]:
        families: dict[str, Metric] = {}
        for rank in self._sockets:
            labels = {"run": self._run, "rank": str(rank), "node": self._node}
            said = self._parse(answers.get(rank, b""), labels)
            if said is None:
                family = families.setdefault(PREFIX + RANK_UP.name, Metric(PREFIX + RANK_UP.name, RANK_UP.help, RANK_UP.kind))
                family.add_sample(family.name, labels, 0.0)
                continue
            for each in said:
                families.setdefault(each.name, each)
                if families[each.name] is not each:
                    families[each.name].samples += each.samples
        return list(families.values())

    def _parse(self, answer: bytes, own: Mapping[str, str]) -> list[Metric] | None:
        """The families in an answer, with those samples that have a rank's own labels; None where there are none, it was cut off, or
        another attempt gave it."""
        try:
            content: Any = json.loads(answer)
            if content["attempt"] != self._attempt:
                return None
            if (spent := float(content.get("seconds", 0.0))) > 0:  # which a NaN is not
                self._spend(min(spent, _MOST_SECONDS))
            families = []
            for name, text, kind, unit, samples in content["families"]:
                family = Metric(str(name), str(text), str(kind), str(unit))
                for sample, labels, value in samples:
                    if own.items() <= labels.items():
                        family.add_sample(str(sample), {str(key): str(each) for key, each in labels.items()}, float(value))
                if family.samples or not samples:
                    families.append(family)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        return families if any(family.samples for family in families) else None

    def close(self) -> None:
        """Drops the connections that were never answered. Not while another thread asks."""
        while self._unanswered:
            self._unanswered.popitem()[1].close()


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _ask(sockets: Mapping[int, Path], seconds: float, unanswered: dict[int, socket.socket]) -> dict[int, bytes]:
    """Rank -> what it sent until it closed the connection; a rank that did not within the time is left out.

    Args:
        sockets: of the ranks.
        seconds: for each of them.
        unanswered: rank -> a connection that it has not answered in time. What comes of it later is too old to be told and says only that
            the rank lives: until then it gets less time. Kept from one call to the next.
    """
    _forget_answered(unanswered)
    began = time.monotonic()
    ends = {rank: began + (min(seconds, SILENT_SECONDS) if rank in unanswered else seconds) for rank in sockets}
    received: dict[int, bytearray] = {}
    answers: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for rank, path in sockets.items():
            try:
                client = connect(path)
            except OSError:  # not there, nobody behind it who may be, or too many wait before it
                continue
            received[rank] = bytearray()
            selector.register(client, selectors.EVENT_READ, (rank, client))
        while selector.get_map():
            left = max(ends[key.data[0]] for key in selector.get_map().values()) - time.monotonic()
            ready = selector.select(max(0.0, left))
            if not ready and left <= 0:  # what has arrived by then is read, also where this process had to wait for a core
                break
            for key, _ in ready:
                rank, client = key.data
                try:
                    chunk = client.recv(2**16)
                except OSError:
                    chunk, received[rank] = b"", bytearray()
                received[rank] += chunk
                if chunk and len(received[rank]) <= LARGEST_ANSWER:
                    continue
                selector.unregister(client)
                client.close()
                answers[rank] = bytes(received[rank])
        for key in list(selector.get_map().values()):
            rank, client = key.data
            if unanswered.setdefault(rank, client) is not client:
                client.close()
    for rank in answers.keys() & unanswered.keys():
        unanswered.pop(rank).close()
    return answers


def _forget_answered(unanswered: dict[int, socket.socket]) -> None:
    """Closes those connections that something has come of."""
    for rank, client in list(unanswered.items()):
        try:
            client.recv(1)
        except BlockingIOError:  # nothing has come
            continue
        except OSError:  # reset: it does not hang any more
            pass
        unanswered.pop(rank).close()
