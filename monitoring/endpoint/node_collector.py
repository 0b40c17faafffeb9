"""Collects the metrics of all ranks of a node at the time of a scrape and puts them together.

Ranks are asked at the same time and have a few seconds, less where the client of the scrape waits for less. A rank that is dead or hangs
costs one scrape that long, later scrapes half a second, and its own metrics, nothing else. It is reported by `context_encoder_rank_up` 0,
and its earlier values are not repeated. Ranks are asked once a second at most, however many scrapes there are, and no scrape is given
values that were collected before it began. Series that are not those of the rank that was asked are dropped.
"""

from __future__ import annotations

import json
import math
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitoring.endpoint.rank_socket import connect
from monitoring.metrics.definitions import DEFINITIONS, PREFIX

RANK_SECONDS = 3.0
"""Time for a rank to answer, or half the time for which the client waits where that is less: a scrape that waits for another one and then
for a rank that hangs is done in time."""
LEAST_SECONDS = 0.5
"""Least time for a rank to answer, whatever the client's time-out, so that no client makes a healthy rank look silent."""
SILENT_SECONDS = 0.5
"""Time for a rank that did not answer in time before and has not since."""
PAUSE_SECONDS = 1.0
"""Least time from the beginning of one collection to that of the next. It bounds the CPU time that scrapes take from a rank."""
LARGEST_ANSWER = 16 * 2**20
RANK_UP = next(definition for definition in DEFINITIONS if definition.name == "rank_up")


class NodeCollector(Collector):
    """Collects from the sockets of a node's ranks. Any thread may call any method but `close`.

    Args:
        sockets: path of the socket of each rank (`monitoring/endpoint/rank_socket.py`).
        run: name of the run.
        node: name of this machine.
        attempt: number of the run's attempt; answers of another attempt are not taken.
    """

    def __init__(self, sockets: Mapping[int, Path], *, run: str, node: str, attempt: int) -> None:
        self._sockets = dict(sorted(sockets.items()))
        self._run, self._node, self._attempt = run, node, attempt
        self._turn = threading.Lock()
        self._began = -math.inf
        self._unanswered: dict[int, socket.socket] = {}  # under the lock

    def collect(self) -> Iterable[Metric]:
        """The metric families of all ranks, collected now."""
        return self.collected_by(math.inf).collect()

    def collected_by(self, deadline: float) -> Collector:
        """Collects the metric families of all ranks now.

        Args:
            deadline: time of the monotonic clock at which the client gives up.
        """
        with self._turn:
            time.sleep(max(0.0, self._began + PAUSE_SECONDS - time.monotonic()))
            self._began = time.monotonic()
            seconds = min(RANK_SECONDS, max(LEAST_SECONDS, (deadline - self._began) / 2))
            return _Collected(self._merge(_ask(self._sockets, seconds, self._unanswered)))

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
        """The families in an answer, with the samples that have the rank's own labels; None for an answer without any, one that was cut
        off, or one of another attempt."""
        try:
            content: Any = json.loads(answer)
            if content["attempt"] != self._attempt:
                return None
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
        """Drops the connections that were never answered. Not to be called while another thread collects."""
        while self._unanswered:
            self._unanswered.popitem()[1].close()


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _ask(sockets: Mapping[int, Path], seconds: float, unanswered: dict[int, socket.socket]) -> dict[int, bytes]:
    """Asks all ranks at the same time; the answer of each rank that finished it in time.

    Args:
        sockets: path of each rank's socket.
        seconds: time for each of them.
        unanswered: connection of each rank that has not answered in time. A late answer is too old to be used and shows only that the rank
            is alive; until it comes the rank gets less time. Kept from one call to the next.
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
            except OSError:  # no socket, no process of this user behind it, or a full queue
                continue
            received[rank] = bytearray()
            selector.register(client, selectors.EVENT_READ, (rank, client))
        while selector.get_map():
            left = max(ends[key.data[0]] for key in selector.get_map().values()) - time.monotonic()
            ready = selector.select(max(0.0, left))
            if not ready and left <= 0:  # an answer that has arrived is read, even if this process waited for a core until now
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
    """Closes the connections on which an answer has begun to arrive."""
    for rank, client in list(unanswered.items()):
        try:
            client.recv(1)
        except BlockingIOError:  # nothing has come
            continue
        except OSError:  # reset: the rank no longer hangs
            pass
        unanswered.pop(rank).close()
