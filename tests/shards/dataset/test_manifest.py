"""The manifest: written whole, read whole, or refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.dataset import manifest
from shards.dataset.manifest import Manifest, ShardRecord
from shards.errors import ManifestMismatch
from shards.store import Store
from tests.datasets import photographs, write_dataset

names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8).map(lambda text: f"{text}.tar")
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
counts = st.integers(0, 2**40)
values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(allow_nan=False)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    shards = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    records = tuple(ShardRecord(name, draw(counts), draw(digests), draw(st.integers(1, 10**6)), draw(digests)) for name in shards)
    classes = tuple(draw(st.lists(st.text(), max_size=4)))
    return Manifest(records, "s3://bucket/x", classes, draw(st.dictionaries(st.text(), values, max_size=4)), draw(counts))


@given(manifests())
def test_a_manifest_comes_back_as_it_was_written(original: Manifest) -> None:
    assert manifest.decode(original.encode(), "manifest.json", original.url) == original


@pytest.mark.parametrize(
    ("settings", "side"),
    [({"resize": 160}, 160), ({"resize": None}, None), ({}, None), ({"resize": 160, manifest.INDEXED: "s3://a"}, None)],
)
def test_the_side_that_pictures_were_stored_at_is_known_where_they_were_resized_here(settings: dict[str, object], side: int | None) -> None:
    assert Manifest((), settings=settings).stored_side == side


@given(manifests(), st.data())
def test_damaged_bytes_are_refused_or_say_the_same(original: Manifest, data: st.DataObject) -> None:
    bytes_ = bytearray(original.encode())
    place = data.draw(st.integers(0, len(bytes_) - 1))
    bytes_[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        back = manifest.decode(bytes(bytes_), "manifest.json", original.url)
    except ManifestMismatch as error:
        assert str(error).startswith("manifest.json: ")  # noqa: PT017 - whether it raises depends on the damage
        return
    assert back.total_samples == sum(record.count for record in back.records)


json_values = st.recursive(values, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=4))
fields = ("format", "version", "samples", "bytes", "rejected", "classes", "settings", "shards")


@given(st.sampled_from(fields), json_values)
def test_a_field_of_any_other_kind_is_an_error_and_not_a_crash(field: str, value: object) -> None:
    table = json.loads(Manifest((ShardRecord("a.tar", 10, "0" * 64, 3, "0" * 64),)).encode())
    table[field] = value
    with contextlib.suppress(ManifestMismatch):
        manifest.decode(json.dumps(table).encode(), "manifest.json", "")


@pytest.mark.parametrize(
    "row",
    [
        ["/etc/passwd", 10, "0", 3, "0"],
        ["../a.tar", 10, "0", 3, "0"],
        ["a/../../b.tar", 10, "0", 3, "0"],
        ["", 10, "0", 3, "0"],
        ["a\0.tar", 10, "0", 3, "0"],
        ["a.tar", -1, "0", 3, "0"],
        ["a.tar", 10, "0", -3, "0"],
        ["a.tar", 10, "0", 2.5, "0"],
        ["a.tar", 10, "0", True, "0"],
        ["a.tar", 10, 0, 3, "0"],
        ["a.tar", 10, "0", 2**63, "0"],
        ["a.tar", 10, "../../x", 3, "0"],
        ["a.tar", 10, "0", 3, "0", 7],
        ["a.tar", 10, "0", 3, "0", "v", "more"],
        ["a.tar", 10, "0"],
        None,
    ],
)
def test_impossible_rows_are_refused(row: object) -> None:
    table = json.loads(Manifest((ShardRecord("a.tar", 10, "0" * 64, 3, "0" * 64),)).encode())
    table["shards"] = [row]
    table["samples"] = row[3] if isinstance(row, list) and len(row) >= 5 else 3
    table["bytes"] = row[1] if isinstance(row, list) else 10
    with pytest.raises(ManifestMismatch, match=r"manifest\.json"):
        manifest.decode(json.dumps(table).encode(), "manifest.json", "")


def test_locate_names_shard_and_row_of_every_sample() -> None:
    data = Manifest(tuple(ShardRecord(f"{count}.tar", 1, "0", count, "0") for count in (3, 1, 4)))
    shard, row = data.locate(np.arange(8))
    assert shard.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert row.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_the_fingerprint_follows_samples_and_their_order() -> None:
    a, b = ShardRecord("a.tar", 1, "1", 2, "0"), ShardRecord("b.tar", 1, "2", 2, "0")
    changed = ShardRecord("a.tar", 1, "3", 2, "0")
    prints = [Manifest(records).fingerprint for records in ((a, b), (b, a), (a,), (changed, b))]
    assert len(set(prints)) == 4
    assert Manifest((a, b), "elsewhere", ("x",)).fingerprint == prints[0]
    assert all(0 <= number < 2**63 for number in prints)


@given(manifests(), st.data())
def test_versions_and_a_folder_of_tars_come_back_and_leave_other_manifests_as_they_were(original: Manifest, data: st.DataObject) -> None:
    table = json.loads(original.encode())
    assert "shards_url" not in table
    assert "version" not in table["columns"]
    assert original.shards_url == original.url
    records = tuple(
        ShardRecord(r.name, r.size, data.draw(st.sampled_from([r.sha256, ""])), r.count, r.index_sha256, data.draw(st.text(max_size=5)))
        for r in original.records
    )
    indexed = Manifest(records, original.url, (), {}, 0, "s3://elsewhere/tars")
    back = manifest.decode(indexed.encode(), "manifest.json", original.url)
    assert back == indexed
    assert (back.url, back.shards_url) == (original.url, "s3://elsewhere/tars")
    assert all(len(record.identity) == 64 for record in records)


def test_a_manifest_keeps_the_bytes_and_the_fingerprint_that_it_had() -> None:
    """Computed by the version before shards could lie elsewhere: checkpoints name it."""
    data = Manifest((ShardRecord("a.tar", 10, "1" * 64, 3, "2" * 64), ShardRecord("b/c.tar", 20, "3" * 64, 4, "4" * 64)), "x", ("k",))
    assert data.fingerprint == 9073323837515794287
    assert hashlib.sha256(data.encode()).hexdigest() == "8034c9b09c4d99a649aaa0b8f86aec48a3425032c0027143636de6084df8a0e2"


def test_what_is_known_of_a_shard_tells_it_from_others() -> None:
    unread = [
        ShardRecord("a.tar", 1, "", 2, "0", "v1"),
        ShardRecord("a.tar", 1, "", 2, "0", "v2"),
        ShardRecord("b.tar", 1, "", 2, "0", "v1"),
    ]
    assert len({record.identity for record in unread}) == len({Manifest((record,)).fingerprint for record in unread}) == 3
    again = [ShardRecord("a.tar", 1, "5" * 64, 2, "0", version) for version in ("v1", "v2")]  # the same bytes, sent again
    assert {record.identity for record in again} == {"5" * 64}
    assert len({Manifest((record,)).fingerprint for record in again}) == 1
    other_picture = ShardRecord("a.tar", 1, "5" * 64, 2, "1", "v1")
    assert Manifest((other_picture,)).fingerprint != Manifest((again[0],)).fingerprint


def test_a_folder_without_a_manifest_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match=r"holds no shards.*python -m shards build"):
        manifest.load(str(tmp_path))
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(ManifestMismatch, match=r"1 \.tar file but no manifest\. Make one with: python -m shards index "):
        manifest.load(str(tmp_path))


def test_a_manifest_that_was_not_fetched_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(ManifestMismatch, match=r"manifest\.json: a Git LFS pointer.*git lfs pull"):
        manifest.load(str(tmp_path))


def test_an_index_of_another_shard_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, photographs(4), [2, 2])
    store = Store(str(tmp_path))
    assert len(manifest.load(f"{tmp_path}/manifest.json").read_index(store, 1)) == 2
    (tmp_path / "shard-000000.tar.idx").write_bytes((tmp_path / "shard-000001.tar.idx").read_bytes())
    with pytest.raises(ManifestMismatch, match=r"shard-000000\.tar\.idx: not the index that the manifest names.*--repair-index"):
        data.read_index(store, 0)
    (tmp_path / "shard-000000.tar.idx").unlink()
    with pytest.raises(ManifestMismatch, match=r"shard-000000\.tar has no readable index.*not found"):
        data.read_index(store, 0)
