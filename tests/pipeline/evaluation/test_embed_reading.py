"""Samples of a unit are read with their keys as webdataset has them, whoever wrote the tar, with few requests."""

from __future__ import annotations

import hashlib
import importlib
import io
import random
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import webdataset

from pipeline.config import DataConfig
from pipeline.evaluation.embedding.network import EmbedError
from pipeline.evaluation.embedding.reading import Raw, SequentialReader, key_of
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import open_datasets
from shards.dataset import index
from shards.dataset.manifest import NAME, Manifest, ShardRecord
from tests.datasets import photographs, write_dataset

LONG = "folder/" + 40 * "long/" + "name"
NAMES = ["plain", "sub/folder/plain", 95 * "x", 100 * "y", LONG, "größe/ñandú", 30 * "deep/" + 90 * "z", "after"]


@contextmanager
def opened(folder: Path) -> Iterator[tuple[SequentialReader, Counters]]:
    counters = Counters()
    (dataset,) = open_datasets(DataConfig(shards=str(folder), cache="none"), 0, counters)
    try:
        yield SequentialReader(dataset.reader), counters
    finally:
        dataset.close()


def write_tar(folder: Path, kind: int, pictures: Sequence[bytes], extra: int, records: bool) -> Path:
    """Writes a tar of one sample for each name: a member of `extra` bytes, the picture, its class."""
    folder.mkdir()
    path = folder / "shard.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for number, (name, picture) in enumerate(zip(NAMES, pictures, strict=True)):
            for extension, data in (("a.npy", bytes(extra)), ("jpg", picture), ("cls", str(number).encode())):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size, member.mtime = len(data), 1.5 if records else 1
                tar.addfile(member, io.BytesIO(data))
    with open(path, "rb") as file:
        rows = index.make(file, path.name).encode()
    path.with_name(path.name + index.SUFFIX).write_bytes(rows)
    data = path.read_bytes()
    record = ShardRecord(path.name, len(data), hashlib.sha256(data).hexdigest(), len(NAMES), hashlib.sha256(rows).hexdigest())
    (folder / NAME).write_bytes(Manifest((record,), str(folder)).encode())
    return path


@pytest.mark.parametrize("records", [False, True], ids=["plain", "records of times"])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_keys_are_those_of_webdataset(tmp_path: Path, kind: int, records: bool) -> None:
    pictures = photographs(len(NAMES))
    path = write_tar(tmp_path / "set", kind, pictures, 700, records)
    with opened(path.parent) as (reader, _):
        found = reader.read(range(len(NAMES)))
        alone = [reader.read(range(number, number + 1))[0] for number in range(len(NAMES))]
    expected = [(sample["jpg"], sample["__key__"], int(sample["cls"])) for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert [(bytes(each.data), each.key, each.label) for each in found if isinstance(each, Raw)] == expected
    assert [each.key for each in alone if isinstance(each, Raw)] == [key for _, key, _ in expected]
    assert [key for _, key, _ in expected] == NAMES


def test_large_members_between_the_pictures_are_not_read(tmp_path: Path) -> None:
    pictures = photographs(len(NAMES))
    path = write_tar(tmp_path / "set", tarfile.GNU_FORMAT, pictures, 1 << 20, records=False)
    with opened(path.parent) as (reader, counters):
        found = reader.read(range(len(NAMES)))
        assert [bytes(each.data) for each in found if isinstance(each, Raw)] == pictures
        assert counters.totals()["bytes_read_store"] < 1 << 20
    assert [each.key for each in found if isinstance(each, Raw)][:2] == NAMES[:2]


def test_neighbours_share_a_request_and_ranges_cross_shards(tmp_path: Path, draw: random.Random) -> None:
    pictures = photographs(60)
    write_dataset(tmp_path, pictures, [20, 1, 39])
    with opened(tmp_path) as (reader, counters):
        before = counters.totals()["store_requests"]
        assert [bytes(each.data) for each in reader.read(range(60)) if isinstance(each, Raw)] == pictures
        assert counters.totals()["store_requests"] - before == 6  # an index and a range for each shard
        for _ in range(30):
            start, stop = sorted((draw.randint(0, 60), draw.randint(0, 60)))
            found = reader.read(range(start, stop))
            assert [each.key for each in found if isinstance(each, Raw)] == [f"{number:09d}" for number in range(start, stop)]


def test_headers_that_make_no_sense_give_the_name_in_the_last_one() -> None:
    header = tarfile.TarInfo("good.jpg").tobuf()
    assert key_of(header) == "good"
    assert key_of(b"\xff" * 512 + header) == "good"
    assert key_of(bytes(1024) + header) == "good"


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipeline.evaluation.embed", *(f"pipeline.evaluation.embedding.{each}" for each in ("output", "part_folder", "table"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EmbedError, match=r"pip install -e '\.\[embed\]'"):
        importlib.import_module("pipeline.evaluation.embed")
