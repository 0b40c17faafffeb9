"""Reads the samples of a unit from their shards, from front to back: neighbours with one request, headers included.

In: ids. Out: bytes, key and label of each sample. The index holds no names, so the key comes from the tar headers in front of the picture,
which are read with it. Every digest is checked; bytes that are wrong are read from the store again before the sample counts as bad.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.stream.read.samples import BadSample, SampleReader
from shards.dataset.index import NO_DIGEST, digest, member_name

_BLOCK = 512
_JOINED = 256 << 10  # bytes between two pictures (other members of their samples) that are read over
_LONGEST_RUN = 8 << 20
_LONG_NAME, _RECORDS, _OTHER_EXTENSIONS = ord("L"), ord("x"), frozenset(b"gK")
_PATH = re.compile(rb"(?:^|\n)\d+ path=([^\n]*)\n")


class Raw(NamedTuple):
    """A sample as it is stored.

    Attributes:
        data: bytes of the picture.
        key: key of the sample, as webdataset names it: its members' name up to the first dot.
        label: class of the sample, -1 where unknown.
    """

    data: bytes | memoryview
    key: str
    label: int


@dataclass
class _Run:
    """Bytes [start, stop) of a shard, and the samples in them: row, first byte of the headers, first byte of the picture, and its end."""

    start: int
    stop: int
    members: list[tuple[int, int, int, int]]


class SequentialReader:
    """Reads consecutive samples of a data set; any number of threads may use it at once.

    Args:
        reader: reader of the data set's samples.
    """

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader

    def read(self, ids: range) -> list[Raw | BadSample]:
        """Reads samples.

        Args:
            ids: ids of the samples, consecutive.

        Returns:
            Each sample, or the reason why its bytes are not those that were stored.

        Raises:
            ShardError: a shard or its index can't be read.
        """
        found = list[Raw | BadSample]()
        if ids:
            (first, last), _ = self._reader.manifest.locate([ids.start, ids.stop - 1])
            for shard in range(int(first), int(last) + 1):
                begin = int(self._reader.manifest.starts[shard])
                rows = range(max(ids.start - begin, 0), min(ids.stop - begin, self._reader.manifest.records[shard].count))
                found += self._of_shard(shard, rows, begin)
        return found

    def _of_shard(self, shard: int, rows: range, begin: int) -> Iterator[Raw | BadSample]:
        """Reads rows of a shard whose first sample has the id `begin`."""
        index = self._reader.index(shard)
        for run in _runs(index.rows, rows):
            data = memoryview(self._reader.read_range(shard, run.start, run.stop))
            for row, header, start, stop in run.members:
                _, proof, _, label = index.row(row)
                picture: bytes | memoryview = data[start - run.start : stop - run.start]
                if proof not in (NO_DIGEST, digest(picture)):
                    try:
                        picture, label = self._reader.read(begin + row, shard, row)
                    except BadSample as error:
                        yield error.with_traceback(None)
                        continue
                yield Raw(picture, key_of(bytes(data[header - run.start : start - run.start])), label)


def _runs(index: np.ndarray[tuple[int], np.dtype[np.void]], rows: range) -> list[_Run]:
    """Joins the rows of a shard to runs. Between two pictures lie the other members of their samples, and headers."""
    found: list[_Run] = []
    before = 0
    if rows and rows.start:
        offset, _, length, _ = index.item(rows.start - 1)
        before = _padded(offset + length)
    for row in rows:
        offset, _, length, _ = index.item(row)
        near = 0 <= offset - before <= _JOINED
        header, stop = before if near else max(0, offset - _BLOCK), offset + length
        member = (row, header, offset, stop)
        if found and near and stop - found[-1].start <= _LONGEST_RUN:
            found[-1].stop = stop
            found[-1].members.append(member)
        else:
            found.append(_Run(header, stop, [member]))
        before = _padded(stop)
    return found


def _padded(end: int) -> int:
    """The first byte of the block behind a member."""
    return -(-end // _BLOCK) * _BLOCK


def key_of(headers: bytes) -> str:
    """The key of a sample.

    Args:
        headers: bytes of the tar in front of the picture: whole members, the picture's header last.
    """
    folder, slash, base = _name_of(headers).rpartition("/")
    return folder + slash + base.partition(".")[0]


def _name_of(headers: bytes) -> str:
    """The name of the last member, whose long form may stand in headers of its own in front of it (GNU's and pax)."""
    long, place = "", 0
    try:
        while place < len(headers) - _BLOCK:
            kind = headers[place + 156]
            size = int(headers[place + 124 : place + 136].strip(b"\0 ") or b"0", 8)
            body = headers[place + _BLOCK : place + _BLOCK + size]
            if kind == _LONG_NAME:
                long = body.split(b"\0", 1)[0].decode("utf-8", "replace")
            elif kind == _RECORDS:
                path = _PATH.search(body)
                long = path[1].decode("utf-8", "replace") if path else long
            elif kind not in _OTHER_EXTENSIONS:
                long = ""
            place += _BLOCK + _padded(size)
    except ValueError:  # a size over 8 GiB of a member between the pictures
        long = ""
    return long or member_name(headers[-_BLOCK:])
