"""Samples of a WebDataset tar: members in their order, grouped by key, every header checked.

`tarfile` does the reading, guarded against damaged headers that would make it read gigabytes, loop forever, or stop early and silently.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Protocol, cast

from shards.counting import counted
from shards.errors import ShardCorrupt
from shards.tar.damage import Progress, check_end, check_member, fault
from shards.tar.member import TarMember

_BLOCK = tarfile.BLOCKSIZE
_META = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips
_LONGEST_HEADER = 16 << 20  # bytes of a long name or of pax records, at most


class TarFile(Protocol):
    """A file that holds a tar. Members are visited in order, so a reader that only goes forward is enough."""

    def read(self, count: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class Sample:
    """One sample of a tar as WebDataset groups it: neighbouring members that share a key."""

    key: str
    members: dict[str, tuple[int, int]]  # extension -> (offset, length) of its bytes in the tar
    links: frozenset[str] = frozenset()  # extensions of members that are links; they hold no bytes, and webdataset skips them


class _Headers:
    """The file that `tarfile` reads: it refuses headers that are longer than any sound one, as a damaged header may claim."""

    def __init__(self, tar: TarFile, name: str, size: int) -> None:
        self._tar, self._name, self._size = tar, name, size
        self.seek, self.tell = tar.seek, tar.tell
        self.reached = Progress()

    def read(self, count: int, /) -> bytes:
        at = self._tar.tell()
        if count > _LONGEST_HEADER or (count > _BLOCK and count > self._size - at):
            raise ShardCorrupt(f"{self._name}: a header of {counted(count, 'byte')} at byte {at:,} of {self._size:,}: damaged or cut short")
        data = self._tar.read(count)
        if count == _BLOCK:
            self.reached.read(at, data)
        return data


def walk(tar: TarFile, name: str, open_ended: bool = False) -> Iterator[tarfile.TarInfo]:
    """Yields the members of an uncompressed tar in order, and checks that the tar is whole.

    Args:
        tar: seekable file; the caller may move it forward, up to the end of the member, while the walk pauses.
        name: name of the tar in errors.
        open_ended: accept a tar without closing blocks, as in `shards.dataset.index.Rules`.

    Raises:
        ShardCorrupt: the file is no tar, cut short, damaged, or holds sparse files; or bytes follow the end of the archive.
    """
    size = tar.seek(0, io.SEEK_END)
    tar.seek(0)
    headers = _Headers(tar, name, size)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], headers), mode="r:", tarinfo=TarMember) as archive:
            for member in archive:
                check_member(member, headers.reached.kind, name, size)
                headers.reached = Progress(member.name, archive.offset)
                yield member
                archive.members.clear()  # type: ignore[attr-defined]  # else every header of a large archive stays in memory
    except (tarfile.TarError, ValueError, LookupError, OverflowError, EOFError, RecursionError) as error:  # damaged headers
        raise fault(name, size, headers.reached, str(error)) from error
    # tarfile stops without an error at a damaged or missing header; only a block of zeros is the end of an archive
    check_end(tar, name, size, headers.reached, open_ended)


def scan(
    tar: TarFile,
    name: str,
    visit: Callable[[str, int, int], None] | None = None,
    open_ended: bool = False,
    last_dot: bool = False,
    leaves_out: Callable[[str], bool] | None = None,
) -> Iterator[Sample]:
    """Yields the samples of a WebDataset tar, grouped as the webdataset library groups them, then keys of links alone.

    The library gives the hidden files of a folder, `d/.q.jpg` and `d/._r.jpg`, to samples of the key `d/`; here they belong to no sample.

    Args:
        tar: seekable file.
        name: name of the tar in errors.
        visit: called with (extension, offset, length) of every member of a sample, before anything behind the member is read.
        open_ended: accept a tar without closing blocks, as in `shards.dataset.index.Rules`.
        last_dot: end a key at the last dot of a name instead of the first, as in `shards.dataset.index.Rules`.
        leaves_out: returns whether the member of a name is passed over; called once for every member that is no folder.

    Raises:
        ShardCorrupt: as `walk`; or a key is in two places, or a sample has a field twice.
    """
    current = Sample("", {})
    seen: set[str] = set()
    links: dict[str, set[str]] = {}

    def linked(sample: Sample) -> Sample:
        return replace(sample, links=frozenset(links[sample.key])) if sample.key in links else sample

    for member in walk(tar, name, open_ended):
        if leaves_out is not None and not member.isdir() and leaves_out(member.name):
            continue
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.rpartition(".") if last_dot else base.partition(".")
        if not dot or base.startswith(".") or _META.match(member.name):
            continue
        key = f"{folder}/{stem}" if folder else stem
        extension = extension.lower()
        if member.islnk() or member.issym():
            links.setdefault(key, set()).add(extension)
        if not member.isreg():
            continue
        if key != current.key:
            if current.members:
                yield linked(current)
            if key in seen:
                raise ShardCorrupt(f"{name}: the key {key} comes twice. Files of one sample must follow one another: tar --sort=name")
            seen.add(key)
            current = Sample(key, {})
        _add(current, extension, member, name)
        if visit is not None:
            visit(extension, member.offset_data, member.size)
    if current.members:
        yield linked(current)
    yield from (Sample(key, {}, frozenset(extensions)) for key, extensions in links.items() if key not in seen)


def _add(sample: Sample, extension: str, member: tarfile.TarInfo, name: str) -> None:
    if extension in sample.members:
        raise ShardCorrupt(
            f"{name}: {member.name}: the sample {sample.key} has the field {extension} twice, and readers disagree on which counts. "
            "Make the tar again with one"
        )
    sample.members[extension] = (member.offset_data, member.size)
