"""Uncompressed tars of pictures, and tars of tars such as ILSVRC2012_img_train.tar.

Nothing is unpacked: a picture is a range of bytes of the outer file, which any process reads by itself. A member of an inner tar is named
`<inner tar without .tar>/<member>`, so `n01440764.tar` holds `n01440764/n01440764_10026.JPEG`, as the unpacked folder would.
"""

from __future__ import annotations

import io
import posixpath
from typing import IO

from shards.build.sources.listing import ListingBuilder, extension_of
from shards.errors import ShardCorrupt, SourceError, StoreError
from shards.store import Store
from shards.tar.samples import walk

_COMPRESSED = {
    b"\x1f\x8b": "gzip (unpack it with: gunzip)",
    b"BZh": "bzip2 (unpack it with: bunzip2)",
    b"\xfd7zXZ\x00": "xz (unpack it with: unxz)",
    b"\x28\xb5\x2f\xfd": "zstd (unpack it with: unzstd)",
    b"PK\x03\x04": "zip (unpack it into a folder)",
}


class TarSource:
    """An uncompressed tar; other files are refused with the reason."""

    def recognises(self, _store: Store, name: str) -> bool:
        """Accepts every object, because the name of a tar may be anything."""
        return bool(name)

    def collect(self, store: Store, name: str, builder: ListingBuilder) -> None:
        """Adds every member of the tar to the listing.

        Raises:
            SourceError: as `collect`; or the tar can't be read.
        """
        try:
            collect(store, name, builder)
        except StoreError as error:
            raise SourceError(str(error)) from error


def collect(store: Store, name: str, builder: ListingBuilder, prefix: str = "") -> None:
    """Adds every member of the tar `name` to the listing.

    Args:
        store: store that holds the tar.
        name: name of the tar in the store.
        builder: listing that gets the members, as ranges of the outer tar.
        prefix: text in front of the members' names.

    Raises:
        SourceError: the tar is compressed, no tar, or cut short, or a member's name leaves the archive.
        StoreError: the store can't be read.
    """
    shown = store.describe(name)
    with store.opened(name) as file:
        _refuse_compressed(file, shown)
        container = builder.open_container(name)
        _add_members(file, shown, builder, container, prefix, start=0, nested=False)


def _add_members(file: IO[bytes], shown: str, builder: ListingBuilder, container: int, prefix: str, start: int, nested: bool) -> None:
    try:
        for member in walk(file, shown):
            if member.isdir():
                continue
            name = prefix + _clean(member.name, shown)
            if builder.leaves_out(name):
                continue
            if extension_of(name) == "cls":
                builder.refuse_classes(
                    f"{builder.source}: WebDataset shards, whose labels are in files such as {name}. Make a data set of them as they are: "
                    f"{builder.index_command}{builder.unlabelled}"
                )
            if not member.isreg():
                builder.pass_over("links and special files in a tar (make it with: tar --dereference --hard-dereference)")
            elif extension_of(name) == "tar" and not nested:
                inner = io.BufferedReader(_Window(file, member.offset_data, member.size), 1 << 16)
                _refuse_compressed(inner, f"{shown}: {name}")
                _add_members(
                    inner, f"{shown}: {name}", builder, container, name[: -len(".tar")] + "/", start=member.offset_data, nested=True
                )
            else:
                builder.add(name, member.size, container, start + member.offset_data)
    except ShardCorrupt as error:
        raise SourceError(f"{error}. Fetch or make the tar again") from error


def _clean(name: str, shown: str) -> str:
    """Returns a member's name without `./`. Names never become paths, but one that leaves the archive is always a mistake."""
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{shown}: the member {name!r} is named outside the archive. Make the tar again with relative names")
    return posixpath.normpath(name)


def _refuse_compressed(file: IO[bytes], shown: str) -> None:
    file.seek(0)
    head = file.read(8)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise SourceError(
                f"{shown}: compressed with {kind}. Pictures are read from their place in the file, which a compressed one hides"
            )


class _Window(io.RawIOBase):
    """Bytes [start, start + length) of another file, as a file. The two may be used in turn, not at once."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._start, self._length, self._place = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(target), max(self._length - self._place, 0))
        self._file.seek(self._start + self._place)
        data = self._file.read(wanted)
        target[: len(data)] = data
        self._place += len(data)
        return len(data)


SOURCE = TarSource()
