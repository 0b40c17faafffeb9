"""The index of a shard: what it says is what is in the tar, and nothing damaged is believed."""

from __future__ import annotations

import contextlib
import io
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from shards.dataset import index
from shards.dataset.index import NO_LABEL, ROW, ShardIndex
from shards.errors import ManifestMismatch, ShardCorrupt
from shards.tar.samples import scan
from tests.shards.trees import tar_of

MEMBERS = {"000.cls": b"3", "000.jpg": b"picture zero", "000.json": b"{}", "001.jpg": b"picture one" * 100, "001.json": b"{}"}


def row_lists() -> st.SearchStrategy[ShardIndex]:
    row = st.tuples(st.integers(0, 2**40), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(-1, 2**31 - 1))
    return st.lists(row, max_size=30).map(lambda rows: ShardIndex(np.array(rows, dtype=ROW), 2**41))


@given(row_lists())
def test_an_index_comes_back_as_it_was_written(original: ShardIndex) -> None:
    data = original.encode()
    back = index.decode(data, "x.idx")
    assert back.shard_bytes == original.shard_bytes
    assert np.array_equal(back.rows, original.rows)
    assert len(data) == 32 + 24 * len(original)


@given(row_lists(), st.data())
def test_a_damaged_index_is_refused(original: ShardIndex, data: st.DataObject) -> None:
    good = bytearray(original.encode())
    kind = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if kind == "flip":
        # the size of the shard (bytes 16 to 24) is checked against the manifest, not by the index itself
        place = data.draw(st.integers(0, len(good) - 1).filter(lambda place: not 16 <= place < 24))
        good[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del good[data.draw(st.integers(0, len(good) - 1)) :]
    else:
        good += data.draw(st.binary(min_size=1, max_size=50))
    with pytest.raises(ManifestMismatch, match=r"x\.idx: .*--repair-index"):
        index.decode(bytes(good), "x.idx")


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda data: b"CE-IDX\x00\x01" + data))
def test_any_bytes_are_an_index_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ManifestMismatch):
        index.decode(data, "x.idx")


@pytest.mark.parametrize("row", [(90, 0, 11, 0), (101, 0, 0, 0), (2**64 - 1, 0, 2, 0)])
def test_a_sample_outside_its_shard_is_refused(row: tuple[int, int, int, int]) -> None:
    with pytest.raises(ManifestMismatch, match="outside the shard"):
        index.decode(ShardIndex(np.array([row], dtype=ROW), 100).encode(), "x.idx")


def test_the_index_says_where_each_picture_lies() -> None:
    data = tar_of(MEMBERS)
    made = index.make(io.BytesIO(data), "x.tar")
    assert made.shard_bytes == len(data)
    taken = [data[int(row["offset"]) : int(row["offset"]) + int(row["length"])] for row in made.rows]
    assert taken == [MEMBERS["000.jpg"], MEMBERS["001.jpg"]]
    assert made.rows["label"].tolist() == [3, NO_LABEL]
    assert made.rows["digest"].tolist() == [index.digest(picture) for picture in taken]
    assert index.member_name(data[int(made.rows["offset"][1]) - 512 : int(made.rows["offset"][1])]) == "001.jpg"


def test_samples_are_grouped_as_webdataset_groups_them(tmp_path: object) -> None:
    odd = {
        "a/b.c/0.seg.png": b"1",
        "a/b.c/0.JPG": b"2",
        "README": b"no extension",
        "__meta__/0.jpg": b"passed over",
        "1.jpg": b"3",
        "1.cls": b"5",
        "x/1.jpg": b"4",
    }
    path = f"{tmp_path}/x.tar"
    with open(path, "wb") as file:
        file.write(tar_of(odd))
    with open(path, "rb") as file:
        ours = {sample.key: sorted(sample.members) for sample in scan(file, "x.tar")}
    theirs = {
        sample["__key__"]: sorted(key for key in sample if not key.startswith("__"))
        for sample in webdataset.WebDataset(path, shardshuffle=False)
    }
    assert ours == theirs


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.jpg": b"1", "1.jpg": b"2", "0.cls": b"3"}, "key 0 comes twice"),
        ({"0.jpg": b"1", "0.png": b"2"}, "several pictures where one is needed"),
        ({"0.cls": b"1"}, "0 pictures where one is needed"),
        ({"0.jpg": b"1", "0.cls": b"cat"}, "not a class number"),
        ({"0.jpg": b"1", "0.cls": b"-2"}, "outside"),
        ({"0.jpg": b"1", "0.cls": b"2147483648"}, "outside"),
        ({"0.jpg": b"1", "0.JPG": b"2"}, "has the field jpg twice"),
    ],
)
def test_a_shard_that_does_not_hold_one_picture_a_key_is_refused(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ShardCorrupt, match=message):
        index.make(io.BytesIO(tar_of(members)), "x.tar")


def test_every_cut_of_a_tar_is_noticed() -> None:
    data = tar_of(MEMBERS)
    end = data.rstrip(b"\0")
    whole = -(-len(end) // 512) * 512  # the last member's padding; one block of zeros after it ends the archive
    for cut in range(0, whole + 512, 64):
        with pytest.raises(ShardCorrupt):
            index.make(io.BytesIO(data[:cut]), "x.tar")
    assert len(index.make(io.BytesIO(data[: whole + 512]), "x.tar")) == 2


@given(st.integers(0, 512 * 9), st.binary(min_size=1, max_size=40))
def test_damaged_headers_never_crash_and_never_lose_samples_silently(place: int, patch: bytes) -> None:
    data = bytearray(tar_of(MEMBERS))
    data[place : place + len(patch)] = patch
    try:
        made = index.make(io.BytesIO(bytes(data)), "x.tar")
    except ShardCorrupt:
        return
    assert len(made) in {1, 2, 3}  # a patch that leaves a valid archive may rename a member, but not end it early


def test_a_negative_size_in_a_header_does_not_send_the_reader_round_in_circles() -> None:
    member = tarfile.TarInfo("0.jpg")
    member.size = 10
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(ShardCorrupt):
        index.make(io.BytesIO(bytes(header) + bytes(2048)), "x.tar")
