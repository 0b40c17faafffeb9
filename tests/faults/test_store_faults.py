"""Network faults in answers of the store: the same batches, or one error that names the shard, and never a wait without end."""

from __future__ import annotations

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.stream.loader import StreamLoader
from pipeline.stream.read.storage import ReaderAbandoned, ResumingReader, ShardUnavailable, reading_store
from shards.errors import ShardError
from shards.store import Store
from tests.faults.conftest import (
    BATCHES,
    DataSet,
    assert_same,
    cache_of,
    reader_through,
    stream_config,
    take,
    through,
    upload,
    whole_shards,
)
from tests.faults.proxy import Fault, Proxy, Rule
from tests.launching import wait_until

pytestmark = pytest.mark.server
SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
INTERNAL = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>'
PAGE = b"<html><body><h1>Maintenance</h1>" + b"<p>Back soon.</p>" * 2000 + b"</body></html>"
XML = {"Content-Type": "application/xml"}
FAULTS = {
    "reset": Rule(Fault.RESET),
    "reset before the first byte": Rule(Fault.RESET, at=0),
    "cut": Rule(Fault.CUT),
    "short body with a length that agrees": Rule(Fault.SHORT),
    "empty body with a length that agrees": Rule(Fault.SHORT, at=0),
    "stall in the body": Rule(Fault.STALL, count=1),
    "stall before the head": Rule(Fault.STALL_HEAD, count=1),
    "chunked body cut": Rule(Fault.CHUNKED_CUT),
    "chunked body that ends early": Rule(Fault.CHUNKED_SHORT),
    "one bit flipped": Rule(Fault.FLIP),
    "503": Rule(Fault.STATUS, status=503),
    "503 SlowDown": Rule(Fault.STATUS, status=503, body=SLOW_DOWN, headers=XML),
    "500": Rule(Fault.STATUS, status=500, body=INTERNAL, headers=XML),
    "429": Rule(Fault.STATUS, status=429, body=SLOW_DOWN, headers=XML),
    "error page with 200": Rule(Fault.STATUS, status=200, body=PAGE, headers={"Content-Type": "text/html"}),
    "error page with 206": Rule(Fault.STATUS, status=206, body=PAGE, headers={"Content-Type": "text/html"}),
    "other range": Rule(Fault.WRONG_RANGE),
    "redirect": Rule(Fault.STATUS, status=307, headers={"Location": "http://127.0.0.1:9/elsewhere"}),
    "garbage": Rule(Fault.GARBAGE),
}


def fresh(rule: Rule, **changes: object) -> Rule:
    """A rule that has not counted anything yet."""
    return Rule(**{**{name: getattr(rule, name) for name in rule.__dataclass_fields__ if name not in {"hits", "_seen"}}, **changes})


def patience(fault: str) -> dict[str, float]:
    """A wait that is over soon where the fault is one that has to be waited for."""
    return {"stall_seconds": 1.0} if fault.startswith("stall") else {}


@pytest.mark.parametrize("cached", [False, True], ids=["ranges", "cache"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_time_only(data_set: DataSet, proxy: Proxy, tmp_path: Path, fault: str, cached: bool) -> None:
    rule = fresh(FAULTS[fault], count=min(FAULTS[fault].count, 1), each_key=True)
    if cached:
        rule.lengths = frozenset(record.size for record in data_set.manifest.records)  # whole shards, on their way into the cache
    proxy.rules = [rule]
    with StreamLoader(through(proxy, data_set, cache=str(tmp_path) if cached else "none", **patience(fault))) as loader:
        assert_same(take(loader), data_set.reference)
        assert len(loader.quarantine) == 0
        if cached:
            wait_until(lambda: len(list(tmp_path.glob("*.tar"))) == len(data_set.manifest.records))
            assert cache_of(loader).failures == {}
    assert rule.hits >= len(data_set.manifest.records) - 1
    if cached:
        assert len(whole_shards(tmp_path)) == len(data_set.manifest.records)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.timeout(120)  # a hang runs into it
def test_a_fault_that_stays_ends_with_the_shards_name(data_set: DataSet, proxy: Proxy, fault: str) -> None:
    name = data_set.manifest.records[3].name
    proxy.rules = [fresh(FAULTS[fault], key=f"*/{name}", count=1 << 40, at=0)]
    with StreamLoader(through(proxy, data_set, retries=1, **patience(fault))) as loader, pytest.raises(ShardError, match=name) as raised:
        take(loader)
    assert "\n" not in str(raised.value)
    assert proxy.rules[0].hits >= 2  # tried again before it gave up


@pytest.mark.parametrize("fault", ["short body with a length that agrees", "one bit flipped", "503 SlowDown", "stall before the head"])
def test_an_index_may_break_on_its_way(data_set: DataSet, proxy: Proxy, fault: str) -> None:
    proxy.rules = [fresh(FAULTS[fault], key="*.idx", count=1, each_key=True)]
    with StreamLoader(through(proxy, data_set, **patience(fault))) as loader:
        assert_same(take(loader), data_set.reference)
    assert proxy.rules[0].hits >= 4


def test_a_burst_of_failures_shorter_than_the_retries_is_outlived(data_set: DataSet, proxy: Proxy) -> None:
    proxy.rules = [Rule(Fault.STATUS, status=503, body=SLOW_DOWN, headers=XML, first=5, count=12)]
    with StreamLoader(through(proxy, data_set, retries=6)) as loader:
        assert_same(take(loader), data_set.reference)
        assert loader.counters.totals()["store_retries"] >= 12
    assert proxy.rules[0].hits == 12


def test_dropped_connections_are_made_again(data_set: DataSet, proxy: Proxy) -> None:
    with StreamLoader(through(proxy, data_set, retries=6)) as loader:
        batches = iter(loader)
        found = [next(batches)]
        proxy.refuse(4)
        found += [next(batches) for _ in range(BATCHES - 1)]
        assert loader.counters.totals()["store_retries"] > 0
    assert_same(found, data_set.reference)


def test_progress_between_failures_is_not_counted_against_the_retries(data_set: DataSet, proxy: Proxy) -> None:
    record = max(data_set.manifest.records, key=lambda record: record.size)
    proxy.rules = [Rule(Fault.RESET, key=f"*/{record.name}", at=3000)]
    data = reader_through(proxy, data_set, retries=1).range(record.name, 0, record.size)
    assert data == (data_set.folder / record.name).read_bytes()
    assert proxy.rules[0].hits >= record.size // 3000 - 1
    assert proxy.sent[f"set/{record.name}"] < record.size + 3000  # continued, not started again


def test_an_object_replaced_inside_one_read_is_named(data_set: DataSet, proxy: Proxy) -> None:
    url = upload(data_set.server, data_set.folder)
    record = max(data_set.manifest.records, key=lambda record: record.size)
    store = Store(url, data_set.server.options)
    other = bytes(reversed(store.read(record.name)))
    proxy.rules = [Rule(Fault.RESET, key=f"*/{record.name}", at=3000, count=1)]
    reader = reader_through(proxy, replace(data_set, url=url))
    got: list[bytes] = []

    def keep(data: bytes) -> None:
        if not got:
            store.write(record.name, other)
        got.append(data)

    with pytest.raises(ShardError, match=rf"{record.name}: replaced by another object since it was listed or while it was read"):
        reader.copy(record.name, 0, record.size, keep)
    assert b"".join(got) == (data_set.folder / record.name).read_bytes()[: len(b"".join(got))]
    assert proxy.requests["GET", f"set/{record.name}"] <= 3


def test_an_object_replaced_between_epochs_ends_with_its_name(data_set: DataSet) -> None:
    url = upload(data_set.server, data_set.folder)
    name = data_set.manifest.records[3].name
    store = Store(url, data_set.server.options)
    config = stream_config(url, data_set.server.options, cache="none")
    with StreamLoader(config) as loader:
        batches = iter(loader)
        first = [next(batches), next(batches)]
        data = store.read(name)
        store.write(name, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        with pytest.raises(ShardError, match=name):
            first += [next(batches) for _ in range(20)]
    assert_same(first[:2], data_set.reference[:2])


def test_an_object_replaced_by_the_same_bytes_is_the_same_object(data_set: DataSet) -> None:
    url = upload(data_set.server, data_set.folder)
    store = Store(url, data_set.server.options)
    with StreamLoader(stream_config(url, data_set.server.options, cache="none")) as loader:
        batches = iter(loader)
        found = [next(batches)]
        for record in data_set.manifest.records:
            store.write(record.name, store.read(record.name))
        found += [next(batches) for _ in range(BATCHES - 1)]
    assert_same(found, data_set.reference)


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "ExpiredToken", "AccessDenied"])
def test_credentials_that_end_in_mid_run_are_named_at_once(data_set: DataSet, proxy: Proxy, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>The provided token is not valid.</Message></Error>".encode()
    with StreamLoader(through(proxy, data_set, retries=20)) as loader:
        batches = iter(loader)
        next(batches)
        proxy.rules = [Rule(Fault.STATUS, status=403, body=body, headers=XML)]
        with pytest.raises(ShardUnavailable, match=r"shard-\d+\.tar: access refused .*credentials"):
            [next(batches) for _ in range(20)]
        assert loader.counters.totals().get("store_retries", 0) == 0


@pytest.mark.timeout(120)  # a hang runs into it
def test_wrong_and_absent_credentials_are_one_message(data_set: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = data_set.server.options
    with pytest.raises(ShardError, match="access refused") as refused:
        StreamLoader(stream_config(data_set.url, {**options, "secret": "wrong-secret"}, cache="none"))
    assert "wrong-secret" not in str(refused.value)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ShardError, match=re.escape(data_set.url)) as absent:
        StreamLoader(stream_config(data_set.url, {"endpoint_url": options["endpoint_url"]}, cache="none"))
    assert re.search("credentials", str(absent.value), re.IGNORECASE)


@pytest.mark.parametrize("how", ["plain", "client"])
@pytest.mark.parametrize("where", [Fault.STALL_HEAD, Fault.STALL])
def test_a_reader_that_is_abandoned_waits_for_nothing(data_set: DataSet, proxy: Proxy, how: str, where: Fault) -> None:
    reader = reader_through(proxy, data_set, retries=100, stall_seconds=600)
    if how == "client":
        reader._plain = None
    name = data_set.manifest.records[0].name
    reader.range(name, 0, 512)  # so that a connection is there already: one that was closed while idle is replaced, this one is not
    proxy.rules = [Rule(where, f"*/{name}", at=10)]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.range, name, 0, 512)
        wait_until(lambda: proxy.rules[0].hits)
        reader.abandon()
        with pytest.raises(ReaderAbandoned, match=name):
            reading.result(60)
    assert proxy.rules[0].hits == 1, "nor does it ask again"


@pytest.mark.parametrize("how", ["no answer to a connection", "no handshake"])
def test_a_reader_that_is_abandoned_waits_for_no_connection(how: str) -> None:
    """A host that drops packets, and one that hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as waiting:
        address = server.getsockname()
        if how == "no answer to a connection":
            for _ in range(3):  # whom the kernel's queue has no room for it does not answer
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(address)
        scheme = "http" if how == "no answer to a connection" else "https"
        options = {"endpoint_url": f"{scheme}://127.0.0.1:{address[1]}", "key": "any", "secret": "any"}
        reader = ResumingReader(reading_store("s3://bucket/set", options, 60), 100, 60)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(reader.range, "shard-000000.tar", 0, 512)
            assert reader._plain is not None
            wait_until(lambda: any(connection.sock is not None for connection in list(reader._plain._live)))
            time.sleep(0.5)  # it is under way: nothing shows how far
            assert not reading.done()
            reader.abandon()
            with pytest.raises(ReaderAbandoned):
                reading.result(20)


def test_most_ranges_are_plain_requests(data_set: DataSet, proxy: Proxy) -> None:
    signed = Rule(Fault.NONE, query="X-Amz-Signature=")
    proxy.rules = [signed]
    reader = reader_through(proxy, data_set, stall_seconds=20)
    record = data_set.manifest.records[0]
    data = (data_set.folder / record.name).read_bytes()
    assert [reader.range(record.name, start, start + 100) for start in range(0, 3000, 100)] == [
        data[start : start + 100] for start in range(0, 3000, 100)
    ]
    assert signed.hits >= 28  # the client may be asked once more where a connection was closed while it was idle
    assert proxy.connections <= 4  # they are kept


def test_where_signed_urls_are_refused_the_client_reads_everything(data_set: DataSet, proxy: Proxy) -> None:
    body = b"<Error><Code>AccessDenied</Code><Message>Query authentication is not allowed here.</Message></Error>"
    proxy.rules = [Rule(Fault.STATUS, status=403, body=body, headers=XML, key="*", query="X-Amz-Signature=")]
    with StreamLoader(through(proxy, data_set)) as loader:
        assert_same(take(loader), data_set.reference)
        assert loader.counters.totals().get("store_retries", 0) == 0
    assert 3 <= proxy.rules[0].hits < 20  # it is not asked again and again


def test_a_signed_url_that_expires_is_signed_anew(data_set: DataSet, proxy: Proxy) -> None:
    reader = reader_through(proxy, data_set, stall_seconds=20)  # a busy machine is no reason to doubt plain requests
    record = data_set.manifest.records[0]
    data = (data_set.folder / record.name).read_bytes()
    assert reader.range(record.name, 0, 100) == data[:100]
    body = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    refusing = Rule(Fault.STATUS, status=403, body=body, headers=XML, query="X-Amz-Signature=", count=5)
    proxy.rules = [refusing]
    assert all(reader.range(record.name, start, start + 100) == data[start : start + 100] for start in range(0, 1000, 100))
    assert refusing.hits == 5
    assert reader.counters.totals().get("store_retries", 0) == 0


@pytest.mark.parametrize("fault", ["reset before the first byte", "stall before the head", "503 SlowDown", "garbage"])
def test_no_message_shows_a_signature(data_set: DataSet, proxy: Proxy, fault: str) -> None:
    proxy.rules = [fresh(FAULTS[fault], count=1 << 40)]
    reader = reader_through(proxy, data_set, retries=1, stall_seconds=0.5)
    with pytest.raises(ShardUnavailable) as raised:
        reader.range(data_set.manifest.records[0].name, 0, 100)
    assert "X-Amz" not in str(raised.value)
    assert data_set.server.key not in str(raised.value)
