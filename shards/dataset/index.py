"""A shard's index: where each sample's picture lies in the tar, its digest and its label, in 24 bytes a sample.

A reader takes `tar[offset : offset + length]`, so no tar is parsed while training. The index lies beside its shard as `<shard>.idx` and is
loaded when the shard is needed, so 10 billion samples never sit in memory. The layout is a 32-byte header and one row per sample,
little-endian. The header's digest covers the rows, so a damaged index is noticed without a manifest. The index holds no names: a sample's
name is in the tar header in front of its picture (`member_name`).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.counting import counted
from shards.errors import ManifestMismatch, ShardCorrupt, ShardError
from shards.layout import left_out_part
from shards.tar.samples import Sample, TarFile, scan

SUFFIX = ".idx"
PICTURE_EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "webp", "png", "tif", "tiff", "bmp", "gif", "ppm", "pgm", "pbm", "pnm")
"""Extensions of the formats that are read. Where a sample has several pictures, the first in this order is taken: photographs are mostly
JPEGs, and the masks beside them are PNGs."""
FORMAT = 2
"""Format of the rules by which samples become rows. It is raised when the same tar and rules would give other rows."""
_STRICT_FORMAT = 1  # exactly one picture a sample, no label -1, and fewer extensions
_STRICT_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm")
LABEL_EXTENSIONS = frozenset({"cls"})
NO_LABEL = -1
NO_DIGEST = 0  # digest of a sample whose bytes were never read

# offset and length in bytes of the picture in the tar, xxh3 of its bytes, class or -1
ROW = np.dtype([("offset", "<u8"), ("digest", "<u8"), ("length", "<u4"), ("label", "<i4")])
_HEADER = struct.Struct("<8sQQQ")  # magic, samples, size of the shard in bytes, xxh3 of the rows
MAGIC = b"CE-IDX\x00\x01"
_CHUNK = 1 << 20
_LONGEST_LABEL = 64  # bytes of a label that are looked at
_SHOWN = 5  # extensions of a sample that are named
DOTS = "an extension begins at the first dot of a name"
"""Part of the reason why a sample has no picture, where dots in its names hide the picture's extension."""
NO_PICTURE = "where one is needed"
"""Part of the reason why a sample has no picture, before the extensions that it has."""
OTHER_FORMATS = frozenset(
    ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "jxl", "jxr", "avif", "heic", "heif", "svg", "pdf", "eps", "psd", "exr", "hdr", "dng", "npy")
)
"""Extensions of formats that are not read."""
Look = Callable[[str, bytes], None]
"""Function that looks at the picture of a sample, by its key."""


def digest(data: bytes | memoryview) -> int:
    """Returns the 64-bit xxh3 that guards one sample from the store to the decoder; never `NO_DIGEST`."""
    return xxhash.xxh3_64_intdigest(data) or 1


@dataclass(frozen=True)
class ShardIndex:
    """The rows of one shard (dtype `ROW`, in the order of the tar) and the shard's size in bytes."""

    rows: NDArray[np.void]
    shard_bytes: int

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> tuple[int, int, int, int]:
        """Returns offset, digest, length and label of one sample."""
        return cast(tuple[int, int, int, int], self.rows.item(number))

    def encode(self) -> bytes:
        """Returns the bytes of the index file."""
        body = self.rows.astype(ROW, copy=False).tobytes()
        return _HEADER.pack(MAGIC, len(self.rows), self.shard_bytes, digest(body)) + body


def file_size(samples: int) -> int:
    """Returns the size in bytes of the index file of a shard with this many samples."""
    return _HEADER.size + samples * ROW.itemsize


def decode(data: bytes, name: str) -> ShardIndex:
    """Reads the bytes of an index file.

    Args:
        data: bytes of the whole file.
        name: name of the index in errors.

    Raises:
        ManifestMismatch: the file is no index, cut short or damaged, or a row points outside the shard.
    """

    def refuse(why: str) -> ManifestMismatch:
        return ManifestMismatch(f"{name}: {why}. Make it again with: python -m shards verify --repair-index URL")

    if len(data) < _HEADER.size or data[:8] != MAGIC:
        raise refuse("not a shard index")
    _, count, shard_bytes, expected = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    if len(body) != count * ROW.itemsize:
        raise refuse(f"holds {counted(len(body), 'byte')} of rows where its header says {counted(count, 'sample')} of {ROW.itemsize}")
    if digest(body) != expected:
        raise refuse("its digest is wrong: the file is damaged")
    rows = np.frombuffer(body, dtype=ROW)
    if shard_bytes >= 2**63 or bool(((rows["offset"] > shard_bytes) | (rows["length"] > shard_bytes - rows["offset"])).any()):
        raise refuse("a sample lies outside the shard")
    return ShardIndex(rows, shard_bytes)


@dataclass(frozen=True)
class Rules:
    """The rules by which samples become rows.

    Attributes:
        picture: extension of the picture to take from each sample, or several joined by `;`, of which the first that a sample has is
            taken; None stands for PICTURE_EXTENSIONS.
        labels: read the labels; else every sample has `NO_LABEL`.
        digests: read the pictures for their digests; else every sample has `NO_DIGEST`.
        open_ended: accept a tar that ends after a member, without the blocks of zeros that prove that nothing is missing.
        last_dot: end a sample's key at the last dot of a name, for names with dots in them; webdataset ends it at the first.
        format: format of the rules; data sets of format 1 are verified by the rules that made them.
    """

    picture: str | None = None
    labels: bool = True
    digests: bool = True
    open_ended: bool = False
    last_dot: bool = False
    format: int = FORMAT

    @property
    def pictures(self) -> tuple[str, ...]:
        """Extensions of pictures, those to prefer first."""
        every = _STRICT_EXTENSIONS if self.format == _STRICT_FORMAT else PICTURE_EXTENSIONS
        return tuple(self.picture.split(";")) if self.picture else every

    def hides(self, name: str) -> str:
        """Returns the part of a member's name that is hidden or a tool's, for which the member is left out; else an empty text."""
        return "" if self.format == _STRICT_FORMAT else left_out_part(name)


@dataclass
class Remarks:
    """Remarkable facts about the samples of a tar, which decide no row.

    Attributes:
        several: number of samples with several pictures, of which the order of PICTURE_EXTENSIONS chose one.
        folders: folders of the samples' keys.
        hidden: number of files that are left out because a part of their names is hidden or a tool's.
        hidden_names: names of some of these parts.
    """

    several: int = 0
    folders: set[str] = field(default_factory=set)
    hidden: int = 0
    hidden_names: set[str] = field(default_factory=set)

    def hide(self, part: str) -> None:
        """Counts a file that is left out for a part of its name."""
        self.hidden += 1
        if len(self.hidden_names) < _SHOWN:
            self.hidden_names.add(part.rpartition("/")[2])


class _Unusable(ShardError):
    """The reason why a sample can't become a row; the caller knows the sample."""


def make(tar: TarFile, name: str, look: Look | None = None) -> ShardIndex:
    """Makes the index of a tar by reading it.

    Args:
        tar: seekable file.
        name: name of the tar in errors.
        look: as in `index_of`.

    Raises:
        ShardCorrupt: as `index_of`; or a sample has not exactly one picture, or a label that is no integer.
    """

    def refuse(key: str, reason: str) -> None:
        raise ShardCorrupt(f"{name}: sample {key} {reason}")

    remarks = Remarks()
    found = index_of(tar, name, Rules(), refuse, remarks, look)
    if remarks.several:
        raise ShardCorrupt(f"{name}: {remarks.several:,} of its samples have several pictures where one is needed")
    return found


def index_of(
    tar: TarFile,
    name: str,
    rules: Rules,
    reject: Callable[[str, str], None],
    remarks: Remarks | None = None,
    look: Look | None = None,
) -> ShardIndex:
    """Makes the index of a tar in one pass that only goes forward.

    Args:
        tar: tar at its beginning; it is read to its end.
        name: name of the tar in errors.
        rules: rules by which samples become rows.
        reject: called with (key, reason) for every sample that can't become a row.
        remarks: gets what is remarkable about the samples.
        look: called with (key, bytes of the picture) for every row; None reads no picture for its pixels.

    Raises:
        ShardCorrupt: as `scan`.
    """
    size = tar.seek(0, io.SEEK_END)
    pictures = frozenset(rules.pictures)
    digests: dict[int, int] = {}
    labels: dict[int, bytes] = {}
    files: dict[int, bytes] = {}

    def visit(extension: str, offset: int, length: int) -> None:
        if extension in pictures and look is not None:
            files[offset] = _bytes_of(tar, offset, length)
            if rules.digests:
                digests[offset] = digest(files[offset])
        elif extension in pictures and rules.digests:
            digests[offset] = _digest_of(tar, offset, length)
        elif extension in LABEL_EXTENSIONS and rules.labels:
            tar.seek(offset)
            labels[offset] = tar.read(min(length, _LONGEST_LABEL))

    rows = []

    def leaves_out(member: str) -> bool:
        part = rules.hides(member)
        if part and remarks is not None:
            remarks.hide(part)
        return bool(part)

    for sample in scan(tar, name, visit, rules.open_ended, rules.last_dot, leaves_out):
        if not sample.members and not sample.links & pictures:
            continue
        try:
            rows.append(_row(sample, rules, digests, labels))
            if remarks is not None:
                remarks.folders.add(sample.key.rpartition("/")[0])
                remarks.several += rules.picture is None and len(pictures & sample.members.keys()) > 1
        except _Unusable as error:
            reject(sample.key, str(error))
        if look is not None and rows and rows[-1][0] in files:
            look(sample.key, files[rows[-1][0]])
        files.clear()
        for place, _ in sample.members.values():
            digests.pop(place, None)
            labels.pop(place, None)
    return ShardIndex(np.array(rows, dtype=ROW), size)


def _row(sample: Sample, rules: Rules, digests: dict[int, int], labels: dict[int, bytes]) -> tuple[int, int, int, int]:
    places = [sample.members[extension] for extension in rules.pictures if extension in sample.members]
    if not places and sample.links & set(rules.pictures):
        raise _Unusable("is a link to another member, which holds no bytes of its own (make the tar with --hard-dereference --dereference)")
    if not places or (len(places) > 1 and rules.format == _STRICT_FORMAT):
        raise _Unusable(f"has {counted(len(places), 'picture')} {NO_PICTURE}: {_shown(sample, rules)}")
    offset, length = places[0]
    if not 0 < length < 2**32:
        raise _Unusable(f"has a picture of {counted(length, 'byte')}: 1 byte is the least and 4 GiB the most")
    label = NO_LABEL
    for extension in LABEL_EXTENSIONS & sample.members.keys():
        text = labels.get(sample.members[extension][0])
        label = NO_LABEL if text is None else _label(text, rules)
    return offset, digests.get(offset, NO_DIGEST), length, label


def member_name(header: bytes) -> str:
    """Returns the name in the 512-byte tar header in front of a sample's picture; of a longer name the first 100 bytes."""
    name, prefix = (header[start:end].split(b"\0", 1)[0] for start, end in ((0, 100), (345, 500)))
    split = header[257:263] == b"ustar\0" and prefix  # GNU keeps other things there
    return (prefix + b"/" + name if split else name).decode("utf-8", "replace")


def _bytes_of(tar: TarFile, offset: int, length: int) -> bytes:
    """Returns a part of a tar, which may be longer than a reader gives at once."""
    tar.seek(offset)
    parts = []
    while length > 0 and (data := tar.read(min(length, _CHUNK))):
        parts.append(data)
        length -= len(data)
    return b"".join(parts)


def _digest_of(tar: TarFile, offset: int, length: int) -> int:
    """Returns the `digest` of a part of a tar without holding the part in memory."""
    tar.seek(offset)
    if length <= _CHUNK:
        return digest(tar.read(length))
    state = xxhash.xxh3_64()
    while length > 0 and (data := tar.read(min(length, _CHUNK))):
        state.update(data)
        length -= len(data)
    return state.intdigest() or 1


def _shown(sample: Sample, rules: Rules) -> str:
    """Returns the extensions of a sample for a person, and that dots in names may be the reason why none of them is a picture's."""
    found = sorted(sample.members)
    dots = not rules.last_dot and any(extension.rpartition(".")[2] in PICTURE_EXTENSIONS for extension in found if "." in extension)
    return f"{found[:_SHOWN]}{' and more' if len(found) > _SHOWN else ''}{f' ({DOTS})' if dots else ''}"


def _label(data: bytes, rules: Rules) -> int:
    try:
        value = int(data if rules.format == _STRICT_FORMAT else data.replace(b"_", b"?"))  # int reads 1_0 as 10
    except ValueError:
        raise _Unusable(f"has the label {data[:20]!r}, which is not a class number") from None
    if value == NO_LABEL and rules.format != _STRICT_FORMAT:
        return NO_LABEL
    if not 0 <= value < 2**31:
        raise _Unusable(f"has the class {value}, which is outside 0 to 2**31-1")
    return value
