"""The metrics of all ranks of a node, asked of each rank at the time of a scrape and put together.

Ranks are asked at the same time and have a few seconds: one that is dead or hangs costs a scrape that long and its own metrics, nothing
else. It is reported by `context_encoder_rank_up` 0, and what it said before is not said again. However many ask, ranks are asked once a
second at most, and nobody is given what was collected before they asked.
"""

from __future__ import annotations

import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitoring.definitions import DEFINITIONS, PREFIX
from monitoring.exporter import encode

RANK_SECONDS = 3.0
"""What a rank gets to answer: a scrape that waits for another one and then for a rank that hangs is done before Prometheus's 10 seconds."""
PAUSE_SECONDS = 1.0
"""Least time from the beginning of one collection to that of the next."""
LARGEST_ANSWER = 16 * 2**20
RANK_UP = next(definition for definition in DEFINITIONS if definition.name == "rank_up")

_log = logging.getLogger(__name__)


@dataclass
class _Collection:
    """What the ranks said once: when they were asked, on the monotonic clock, and the texts that were made of it so far."""

    began: float
    families: list[Metric]
    texts: dict[bool, bytes] = field(default_factory=dict)


class NodeCollector(Collector):
    """Any thread may call any method.

    Args:
        sockets: rank -> where it answers (`monitoring/rank_socket.py`).
        run: name of the run, for ranks that do not answer.
        node: name of this machine, likewise.
        attempt: of the run; what a process of another one answers is not taken.
    """

    def __init__(self, sockets: Mapping[int, Path], *, run: str, node: str, attempt: int) -> None:
        self._sockets = dict(sorted(sockets.items()))
        self._run, self._node, self._attempt = run, node, attempt
        self._done, self._collecting = threading.Condition(), False
        self._encoding = threading.Lock()
        self._last = _Collection(-1e9, [])

    def collect(self) -> Iterator[Metric]:
        """The families of all ranks, of a collection that began after the call."""
        yield from self._collection().families

    def exposition(self, form: bool) -> bytes:
        """Their text: OpenMetrics where True is asked for, else Prometheus's own. Many that ask at the same time share one."""
        collection = self._collection()
        with self._encoding:
            text = collection.texts.get(form)
            if text is None:
                text = collection.texts[form] = encode(_Collected(collection.families), form)
        return text

    def _collection(self) -> _Collection:
        asked = time.monotonic()
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
            found = _Collection(began, self._merge(_ask(self._sockets, RANK_SECONDS)))
        finally:
            with self._done:  # all that asked before it began take it, one of the others is the next to collect
                self._last, self._collecting = found or self._last, False
                self._done.notify_all()
        return found

    def _merge(self, answers: Mapping[int, bytes]) -> list[Metric]:
        families: dict[str, Metric] = {}
        for rank in self._sockets:
            said = _parse(answers.get(rank, b""), self._attempt)
            if said is None:
                family = families.setdefault(PREFIX + RANK_UP.name, Metric(PREFIX + RANK_UP.name, RANK_UP.help, RANK_UP.kind))
                family.add_sample(family.name, {"run": self._run, "rank": str(rank), "node": self._node}, 0.0)
                continue
            for each in said:
                families.setdefault(each.name, each)
                if families[each.name] is not each:
                    families[each.name].samples += each.samples
        return list(families.values())


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _ask(sockets: Mapping[int, Path], seconds: float) -> dict[int, bytes]:
    """Rank -> what it sent until it closed the connection; a rank that did not within the time is left out."""
    end = time.monotonic() + seconds
    received: dict[int, bytearray] = {}
    answers: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for rank, path in sockets.items():
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.setblocking(False)
            try:
                client.connect(str(path))
            except OSError:  # not there, nobody behind it, or too many wait before it
                client.close()
                continue
            received[rank] = bytearray()
            selector.register(client, selectors.EVENT_READ, (rank, client))
        while selector.get_map():
            left = end - time.monotonic()
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
            key.data[1].close()
    return answers


def _parse(answer: bytes, attempt: int) -> list[Metric] | None:
    """The families in an answer; None where there is none, it was cut off, or another attempt gave it."""
    try:
        content: Any = json.loads(answer)
        if content["attempt"] != attempt:
            return None
        families = []
        for name, text, kind, unit, samples in content["families"]:
            family = Metric(str(name), str(text), str(kind), str(unit))
            for sample, labels, value in samples:
                family.add_sample(str(sample), {str(key): str(each) for key, each in labels.items()}, float(value))
            families.append(family)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return families
