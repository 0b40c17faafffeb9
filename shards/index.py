"""A shard's index: where each sample's picture lies in the tar, its digest and its label, in 24 bytes a sample.

With it a reader takes `tar[offset : offset + length]`: no tar is parsed while training. The index is written beside
its shard as `<shard>.idx` and loaded when the shard is needed, so that 10 billion samples never sit in memory. The layout is a 32-byte
header and one row a sample, little-endian; the header's digest covers the rows, so that a damaged index is noticed without a manifest.
The name of a sample is not kept: it is in the tar header in front of the picture (`member_name`).
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import ManifestMismatch, ShardCorrupt

SUFFIX = ".idx"
PICTURE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"})
LABEL_EXTENSIONS = frozenset({"cls"})
NO_LABEL = -1

# offset and length in bytes of the picture in the tar, xxh3 of its bytes, class or -1
ROW = np.dtype([("offset", "<u8"), ("digest", "<u8"), ("length", "<u4"), ("label", "<i4")])
_HEADER = struct.Struct("<8sQQQ")  # magic, samples, size of the shard in bytes, xxh3 of the rows
_MAGIC = b"CE-IDX\x00\x01"
_BLOCK = tarfile.BLOCKSIZE
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset passes over


def digest(data: bytes | memoryview) -> int:
    """The 64-bit xxh3 that guards one sample from the store to the decoder."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True)
class ShardIndex:
    """Rows (dtype `ROW`, in the order of the tar) and the size of the shard they describe."""

    rows: NDArray[np.void]
    shard_bytes: int

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self) -> bytes:
        """The bytes of the index file."""
        body = self.rows.astype(ROW, copy=False).tobytes()
        return _HEADER.pack(_MAGIC, len(self.rows), self.shard_bytes, digest(body)) + body


def file_size(samples: int) -> int:
    """Bytes of the index file of a shard with so many samples."""
    return _HEADER.size + samples * ROW.itemsize


def decode(data: bytes, name: str) -> ShardIndex:
    """Reads the bytes of an index file.

    Args:
        data: the whole file.
        name: what to call it in errors.

    Raises:
        ManifestMismatch: not an index, cut short, damaged, or pointing outside its shard.
    """

    def refuse(why: str) -> ManifestMismatch:
        return ManifestMismatch(f"{name}: {why}. Make it again with: python -m shards verify --repair-index URL")

    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise refuse("not a shard index")
    _, count, shard_bytes, expected = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    if len(body) != count * ROW.itemsize:
        raise refuse(f"holds {len(body)} bytes of rows where its header says {count} samples of {ROW.itemsize}")
    if digest(body) != expected:
        raise refuse("its digest is wrong: the file is damaged")
    rows = np.frombuffer(body, dtype=ROW)
    if shard_bytes >= 2**63 or bool(((rows["offset"] > shard_bytes) | (rows["length"] > shard_bytes - rows["offset"])).any()):
        raise refuse("a sample lies outside the shard")
    return ShardIndex(rows, shard_bytes)


@dataclass(frozen=True)
class Sample:
    """One sample of a tar as WebDataset groups it: neighbouring members that share a key."""

    key: str
    members: dict[str, tuple[int, int]]  # extension -> (offset, length) of its bytes in the tar


def walk(tar: IO[bytes], name: str) -> Iterator[tarfile.TarInfo]:
    """Goes over the members of an uncompressed tar whose bytes lie in it one after the other, and checks that it is whole.

    Args:
        tar: a seekable file; may be moved while the walk pauses.
        name: what to call it in errors.

    Raises:
        ShardCorrupt: not a tar, cut short, damaged, or holding sparse files.
    """
    size = tar.seek(0, io.SEEK_END)
    tar.seek(0)
    try:
        with tarfile.open(fileobj=tar, mode="r:") as archive:
            for member in archive:
                # a damaged header may name a negative size, which would send tarfile round in circles
                if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                    raise ShardCorrupt(f"{name}: cut short inside {member.name}: {size} bytes are there")
                if member.issparse():
                    raise ShardCorrupt(f"{name}: {member.name} is stored as a sparse file. Make the tar without --sparse")
                yield member
                archive.members.clear()  # type: ignore[attr-defined]  # or every header of a large archive stays in memory
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:  # what tarfile raises for damaged headers
        raise ShardCorrupt(f"{name}: not a readable tar: {error}") from error
    # tarfile stops without an error at a damaged or missing header; only a block of zeros is the end of an archive
    tar.seek(end)
    closing = tar.read(_BLOCK)
    if len(closing) < _BLOCK or closing.strip(b"\0"):
        raise ShardCorrupt(f"{name}: cut short or damaged at byte {end} of {size}: the end of the archive is missing")


def scan(tar: IO[bytes], name: str) -> Iterator[Sample]:
    """Goes over the samples of a WebDataset tar, grouped as the webdataset library groups them.

    Args:
        tar: a seekable file.
        name: what to call it in errors.

    Raises:
        ShardCorrupt: as `walk`, or holding a key in two places or a member twice.
    """
    current = Sample("", {})
    seen: set[str] = set()
    for member in walk(tar, name):
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not member.isreg() or not dot or not stem or _META.match(member.name):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != current.key:
            if current.members:
                yield current
            if key in seen:
                raise ShardCorrupt(f"{name}: the key {key} comes twice")
            seen.add(key)
            current = Sample(key, {})
        if extension.lower() in current.members:
            raise ShardCorrupt(f"{name}: {member.name} comes twice")
        current.members[extension.lower()] = (member.offset_data, member.size)
    if current.members:
        yield current


def make(tar: IO[bytes], name: str) -> ShardIndex:
    """Makes the index of a tar by reading it.

    Args:
        tar: a seekable file.
        name: what to call it in errors.

    Raises:
        ShardCorrupt: as `scan`, or a sample without exactly one picture, or a label that is no integer.
    """
    rows = []
    for sample in scan(tar, name):
        pictures = [place for extension, place in sample.members.items() if extension in PICTURE_EXTENSIONS]
        if len(pictures) != 1:
            raise ShardCorrupt(f"{name}: sample {sample.key} has {len(pictures)} pictures where one is needed: {sorted(sample.members)}")
        (offset, length), label = pictures[0], NO_LABEL
        if length >= 2**32:
            raise ShardCorrupt(f"{name}: the picture of {sample.key} has {length} bytes: 4 GiB is the most")
        for extension in LABEL_EXTENSIONS & sample.members.keys():
            label = _label(_read(tar, *sample.members[extension]), f"{name}: {sample.key}.{extension}")
        rows.append((offset, digest(_read(tar, offset, length)), length, label))
    return ShardIndex(np.array(rows, dtype=ROW), tar.seek(0, io.SEEK_END))


def member_name(header: bytes) -> str:
    """The name in the 512 bytes of tar header that stand in front of a sample's picture."""
    return header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")


def _read(tar: IO[bytes], offset: int, length: int) -> bytes:
    tar.seek(offset)
    return tar.read(length)


def _label(data: bytes, name: str) -> int:
    try:
        value = int(data)
    except ValueError:
        raise ShardCorrupt(f"{name}: {data[:20]!r} is not a class number") from None
    if not 0 <= value < 2**31:
        raise ShardCorrupt(f"{name}: class {value} is outside 0 to 2**31-1")
    return value
