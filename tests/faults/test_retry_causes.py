"""Causes that failed requests are counted under, with a real store and network faults, for both ways in which S3 is asked."""

from __future__ import annotations

import socket

import pytest

from pipeline.stream.read.retries import CAUSES, Refused, Short, cause
from tests.faults.conftest import DataSet, reader_through
from tests.faults.proxy import Proxy
from tests.faults.test_store_faults import FAULTS, fresh

EXPECTED = {
    "reset": "connection",
    "reset before the first byte": "connection",
    "short body with a length that agrees": "short",
    "empty body with a length that agrees": "short",
    "stall in the body": "timeout",
    "stall before the head": "timeout",
    "chunked body that ends early": "short",
    "503": "server_error",
    "503 SlowDown": "throttled",
    "500": "server_error",
    "429": "throttled",
    "error page with 206": "other",
    "garbage": "connection",
}
NOT_TOLD_APART = ("reset", "reset before the first byte", "cut", "chunked body cut")
"""The client calls each of them a short body; for the system a connection that is closed with bytes on their way was reset."""


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("way", ["signed", "client"])
def test_a_retry_is_counted_by_what_was_wrong(data_set: DataSet, proxy: Proxy, way: str) -> None:
    record = data_set.manifest.records[0]
    wrong = {}
    for fault in (*EXPECTED, "cut", "chunked body cut"):
        expected = {"signed": "connection", "client": "short"}[way] if fault in NOT_TOLD_APART else EXPECTED[fault]
        proxy.rules = [fresh(FAULTS[fault], key=f"*/{record.name}", count=1)]
        # where nothing is to stall, a busy machine must not look as if it did
        reader = reader_through(proxy, data_set, retries=3, stall_seconds=2.0 if expected == "timeout" else 30.0)
        if way == "client":
            reader._plain = None
        assert reader.range(record.name, 0, record.size) == (data_set.folder / record.name).read_bytes()
        totals = reader.counters.totals()
        found = {name: totals[f"store_retries_{name}"] for name in CAUSES if f"store_retries_{name}" in totals}
        assert sum(found.values()) == totals["store_retries"]
        if set(found) != {expected} and not (fault in NOT_TOLD_APART and set(found) == {"short"}):
            wrong[fault] = found
        timed = sum(amount for name, amount in totals.items() if name.startswith("store_requests_up_to_"))
        assert timed == totals["store_requests"] == 1 + totals["store_retries"], "every attempt is timed, those that failed too"
        slow = sum(totals.get(f"store_requests_up_to_{bound}", 0) for bound in ("5", "30"))
        assert slow >= (expected == "timeout"), "one that stalls for two seconds is in a bucket above them"
    assert wrong == {}


@pytest.mark.server
def test_a_server_that_is_not_there_is_a_connection(data_set: DataSet, proxy: Proxy) -> None:
    record = data_set.manifest.records[0]
    proxy.refuse(2)
    reader = reader_through(proxy, data_set, retries=6, stall_seconds=30.0)
    assert len(reader.range(record.name, 0, record.size)) == record.size
    assert reader.counters.totals()["store_retries"] == reader.counters.totals()["store_retries_connection"] > 0


@pytest.mark.server
def test_the_pause_before_another_attempt_is_no_part_of_a_request(data_set: DataSet, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    record = data_set.manifest.records[0]
    proxy.rules = [fresh(FAULTS["503"], key=f"*/{record.name}", count=2)]
    reader, counted = reader_through(proxy, data_set, stall_seconds=30.0), list[float]()
    pause = reader._pause

    def noted(failures: int, name: str, error: Exception) -> None:
        counted.append(reader.counters.totals()["store_requests"])
        pause(failures, name, error)

    monkeypatch.setattr(reader, "_pause", noted)
    reader.range(record.name, 0, record.size)
    assert counted == [1, 2], "each is counted, and its time taken, before the pause"


def raised(outer: Exception, inner: Exception) -> Exception:
    try:
        raise outer from inner
    except Exception as error:
        return error


def test_what_says_most_counts_wherever_it_stands() -> None:
    assert cause(raised(OSError("failed"), Refused(503, "503 SlowDown"))) == "throttled"
    assert cause(raised(OSError("failed"), Refused(502, "502"))) == "server_error"
    assert cause(raised(OSError("failed"), TimeoutError())) == "timeout"
    assert cause(raised(OSError("ended"), Short("ended"))) == "short"
    assert cause(raised(OSError("failed"), ConnectionResetError())) == "connection"
    assert cause(raised(OSError("failed"), socket.gaierror(-2, "Name or service not known"))) == "connection"
    assert cause(OSError("failed")) == "other"
    assert cause(Refused(404, "404")) == "other"
    endless = OSError("failed")
    endless.__cause__ = endless
    assert cause(endless) == "other"
