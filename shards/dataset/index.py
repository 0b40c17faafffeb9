"""A shard's index: where each sample's picture lies in the tar, its digest and its label, in 24 bytes a sample.

With it a reader takes `tar[offset : offset + length]`: no tar is parsed while training. The index is written beside
its shard as `<shard>.idx` and loaded when the shard is needed, so that 10 billion samples never sit in memory. The layout is a 32-byte
header and one row a sample, little-endian; the header's digest covers the rows, so that a damaged index is noticed without a manifest.
The name of a sample is not kept: it is in the tar header in front of the picture (`member_name`).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import ManifestMismatch, ShardCorrupt, ShardError
from shards.tar.samples import Sample, TarFile, scan

SUFFIX = ".idx"
PICTURE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"})
LABEL_EXTENSIONS = frozenset({"cls"})
NO_LABEL = -1
NO_DIGEST = 0  # of a sample whose bytes were never read

# offset and length in bytes of the picture in the tar, xxh3 of its bytes, class or -1
ROW = np.dtype([("offset", "<u8"), ("digest", "<u8"), ("length", "<u4"), ("label", "<i4")])
_HEADER = struct.Struct("<8sQQQ")  # magic, samples, size of the shard in bytes, xxh3 of the rows
MAGIC = b"CE-IDX\x00\x01"
_CHUNK = 1 << 20
_LONGEST_LABEL = 64  # bytes of a label that are looked at


def digest(data: bytes | memoryview) -> int:
    """The 64-bit xxh3 that guards one sample from the store to the decoder; never `NO_DIGEST`."""
    return xxhash.xxh3_64_intdigest(data) or 1


@dataclass(frozen=True)
class ShardIndex:
    """Rows (dtype `ROW`, in the order of the tar) and the size of the shard they describe."""

    rows: NDArray[np.void]
    shard_bytes: int

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> tuple[int, int, int, int]:
        """Offset, digest, length and label of a sample."""
        return cast(tuple[int, int, int, int], self.rows.item(number))

    def encode(self) -> bytes:
        """The bytes of the index file."""
        body = self.rows.astype(ROW, copy=False).tobytes()
        return _HEADER.pack(MAGIC, len(self.rows), self.shard_bytes, digest(body)) + body


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

    if len(data) < _HEADER.size or data[:8] != MAGIC:
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
class Rules:
    """How samples become rows.

    Attributes:
        picture: extension of the one picture of a sample that is taken; None takes the only one there is.
        labels: read the labels; else every sample goes without.
        digests: read the pictures for their digests; else they are `NO_DIGEST`.
        open_ended: accept a tar that ends after a member, without the blocks of zeros that prove that nothing is missing.
    """

    picture: str | None = None
    labels: bool = True
    digests: bool = True
    open_ended: bool = False


class _Unusable(ShardError):
    """A sample that can't become a row. The message is the reason alone."""


def make(tar: TarFile, name: str) -> ShardIndex:
    """Makes the index of a tar by reading it.

    Args:
        tar: a seekable file.
        name: what to call it in errors.

    Raises:
        ShardCorrupt: as `index_of`, or a sample without exactly one picture, or a label that is no integer.
    """

    def refuse(key: str, reason: str) -> None:
        raise ShardCorrupt(f"{name}: sample {key} {reason}")

    return index_of(tar, name, Rules(), refuse)


def index_of(tar: TarFile, name: str, rules: Rules, reject: Callable[[str, str], None]) -> ShardIndex:
    """Makes the index of a tar in one pass that only goes forward.

    Args:
        tar: from the beginning; read to its end.
        name: what to call it in errors.
        rules: what becomes a row.
        reject: called with (key, reason) for every sample that can't become one; it gets no row.

    Raises:
        ShardCorrupt: as `scan`, or with something behind the end of the archive.
    """
    size = tar.seek(0, io.SEEK_END)
    pictures = frozenset({rules.picture}) if rules.picture else PICTURE_EXTENSIONS
    digests: dict[int, int] = {}
    labels: dict[int, bytes] = {}

    def visit(extension: str, offset: int, length: int) -> None:
        if extension in pictures and rules.digests:
            digests[offset] = _digest_of(tar, offset, length)
        elif extension in LABEL_EXTENSIONS and rules.labels:
            tar.seek(offset)
            labels[offset] = tar.read(min(length, _LONGEST_LABEL))

    rows = []
    for sample in scan(tar, name, visit, rules.open_ended):
        if not sample.members and not sample.links & pictures:
            continue
        try:
            rows.append(_row(sample, pictures, digests, labels))
        except _Unusable as error:
            reject(sample.key, str(error))
        for place, _ in sample.members.values():
            digests.pop(place, None)
            labels.pop(place, None)
    while rest := tar.read(_CHUNK):
        if rest.count(0) != len(rest):
            raise ShardCorrupt(
                f"{name}: bytes follow the end of the archive, which no reader sees. Were tars joined without tar --concatenate?"
            )
    return ShardIndex(np.array(rows, dtype=ROW), size)


def _row(sample: Sample, pictures: frozenset[str], digests: dict[int, int], labels: dict[int, bytes]) -> tuple[int, int, int, int]:
    places = [place for extension, place in sample.members.items() if extension in pictures]
    if not places and sample.links & pictures:
        raise _Unusable("is a link to another member, which holds no bytes of its own (make the tar with --hard-dereference --dereference)")
    if len(places) != 1:
        raise _Unusable(f"has {len(places)} pictures where one is needed: {sorted(sample.members)}")
    offset, length = places[0]
    if not 0 < length < 2**32:
        raise _Unusable(f"has a picture of {length} bytes: 1 byte is the least and 4 GiB the most")
    label = NO_LABEL
    for extension in LABEL_EXTENSIONS & sample.members.keys():
        text = labels.get(sample.members[extension][0])
        label = NO_LABEL if text is None else _label(text)
    return offset, digests.get(offset, NO_DIGEST), length, label


def member_name(header: bytes) -> str:
    """The name in the 512 bytes of tar header that stand in front of a sample's picture; the first 100 bytes of one that is longer."""
    name, prefix = (header[start:end].split(b"\0", 1)[0] for start, end in ((0, 100), (345, 500)))
    split = header[257:263] == b"ustar\0" and prefix  # GNU keeps other things there
    return (prefix + b"/" + name if split else name).decode("utf-8", "replace")


def _digest_of(tar: TarFile, offset: int, length: int) -> int:
    """`digest` of a part of a tar, without holding it in memory."""
    tar.seek(offset)
    if length <= _CHUNK:
        return digest(tar.read(length))
    state = xxhash.xxh3_64()
    while length > 0 and (data := tar.read(min(length, _CHUNK))):
        state.update(data)
        length -= len(data)
    return state.intdigest() or 1


def _label(data: bytes) -> int:
    try:
        value = int(data)
    except ValueError:
        raise _Unusable(f"has the label {data[:20]!r}, which is not a class number") from None
    if not 0 <= value < 2**31:
        raise _Unusable(f"has the class {value}, which is outside 0 to 2**31-1")
    return value
