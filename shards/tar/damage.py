"""Names the fault of a tar that can't be read to its end.

`tarfile`, and every reader that is built on it, takes a damaged header, a header that is cut short and a block of zeros for the end of the
archive: the samples behind it are lost without an error. GNU tar goes on at the next header, with a warning. Here such a tar is refused,
and the error says what lies at which byte.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import Protocol

from shards.counting import counted
from shards.dataset.lookalike import kind_of
from shards.errors import ShardCorrupt

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST_PADDING = 4 << 20  # tar pads to 10 KiB, and to 1 MiB for tapes; a download that was never finished leaves more
_CONTINUED = b"M"  # type of a member that begins in the volume before
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)  # types of headers that hold a long name
_SHORT = 100  # bytes of a name that a header holds
_KIND = slice(156, 157)
_AGAIN = "Fetch or make the tar again"


class _File(Protocol):
    def read(self, count: int, /) -> bytes: ...


@dataclass
class Progress:
    """The last place of a tar that was read.

    Attributes:
        member: name of the last whole member; empty before the first.
        header_at: byte at which the last header begins, or should begin.
        header: bytes that were read there, at most 512.
        kind: type of the first header behind that member; it may be one that holds a long name, in front of the next member's own.
    """

    member: str = ""
    header_at: int = 0
    header: bytes = b""
    kind: bytes = b""

    def read(self, at: int, header: bytes) -> None:
        """Takes note of the bytes of a header."""
        self.kind = self.kind or header[_KIND]
        self.header_at, self.header = at, header

    @property
    def place(self) -> str:
        """The place of the last header, for messages."""
        return f"at byte {self.header_at}" + (f", behind {self.member}" if self.member else "")


def check_member(member: tarfile.TarInfo, kind: bytes, name: str, size: int) -> None:
    """Checks that a member is whole, and stored in a form that every reader reads.

    Args:
        member: member as tarfile reads it.
        kind: type of the member's first header, as in `Progress`.
        name: name of the tar in errors.
        size: bytes of the tar.

    Raises:
        ShardCorrupt: the member is cut short, damaged, sparse, or continues another volume.
    """
    if member.issparse():
        raise ShardCorrupt(
            f"{name}: {member.name} is stored as a sparse file, whose holes are not in the tar. Make the tar without --sparse (-S), with "
            "bsdtar by --no-read-sparse"
        )
    # a damaged header may name a negative size, which would send tarfile round in circles
    end = member.offset_data + member.size
    if member.size < 0 or (member.isreg() and end > size):
        there = counted(size, "byte is", "bytes are")
        raise ShardCorrupt(f"{name}: cut short inside {member.name}, or its header is damaged: {there} there, {end:,} are needed")
    if member.type == _CONTINUED:
        raise ShardCorrupt(f"{name}: {member.name} begins in another volume (tar --multi-volume). Make the tar without it")
    if kind in _LONG and member.isreg():
        short = len(member.name.encode("utf-8", "surrogateescape")) < _SHORT
        if short if kind == tarfile.GNUTYPE_LONGNAME else not member.pax_headers:
            raise ShardCorrupt(f"{name}: the long name of the member at byte {member.offset} is damaged: {member.name!r} is left. {_AGAIN}")


def check_end(tar: _File, name: str, size: int, reached: Progress, open_ended: bool) -> None:
    """Checks that a tar ends with a block of zeros, and that nothing but zeros follows.

    Args:
        tar: file that holds the tar; its next byte follows the last header that was read.
        name: name of the tar in errors.
        size: bytes of the tar.
        reached: the last header that was read, which is not one of a member.
        open_ended: accept a tar that ends exactly behind a member, without closing blocks.

    Raises:
        ShardCorrupt: the tar is cut short or damaged, or bytes follow its end.
    """
    if len(reached.header) < _BLOCK or any(reached.header):
        if not (open_ended and reached.header_at == size):
            raise fault(name, size, reached)
        return
    position = reached.header_at + _BLOCK
    while rest := tar.read(_CHUNK):
        zeros = len(rest) - len(rest.lstrip(b"\0"))
        if zeros < len(rest):
            start = zeros // _BLOCK * _BLOCK
            raise _followed(name, size, reached, position + start, rest[start : start + _BLOCK])
        position += len(rest)
    if position - reached.header_at > _LONGEST_PADDING:
        raise ShardCorrupt(
            f"{name}: {counted(position - reached.header_at, 'byte')} of zeros {reached.place}, more than an archive ends "
            f"with: was a download not finished? {_AGAIN}; if it is whole, shorten it: truncate --size {reached.header_at + 2 * _BLOCK}"
        )


def _followed(name: str, size: int, reached: Progress, start: int, block: bytes) -> ShardCorrupt:
    """Returns the error for bytes behind the end, of which `block` are the first, at byte `start`."""
    if start == reached.header_at + _BLOCK:
        return ShardCorrupt(
            f"{name}: a block of zeros {reached.place}, where a header should be: readers take it for the end and lose "
            f"{counted(size - start, 'byte')} without an error. {_AGAIN}"
        )
    if _is_header(block):
        return ShardCorrupt(
            f"{name}: a second archive begins at byte {start}, behind the end of the first at byte {reached.header_at}, where readers stop "
            "without an error. Join tars with tar --concatenate, or index them one by one; if none were joined, blocks were overwritten by "
            "zeros"
        )
    return ShardCorrupt(
        f"{name}: {counted(size - start, 'byte')} of no archive behind the blocks of zeros {reached.place}, where readers stop "
        f"without an error. {_AGAIN}"
    )


def fault(name: str, size: int, reached: Progress, reason: str = "") -> ShardCorrupt:
    """Returns the error for a tar of `size` bytes that can't be read beyond the last header; `reason` is tarfile's own."""
    header, at = reached.header, reached.header_at
    if size == 0:
        return ShardCorrupt(f"{name}: an empty file. {_AGAIN}")
    if at == 0 and (kind := kind_of(header)):
        return ShardCorrupt(f"{name}: {kind}")
    if at > size:
        there = counted(size, "byte is", "bytes are")
        return ShardCorrupt(f"{name}: cut short behind {reached.member}: {there} there, {at:,} are needed. {_AGAIN}")
    if at == size:
        return ShardCorrupt(
            f"{name}: ends {reached.place}, without the blocks of zeros that close an archive: cut short there, or written by a program "
            "that leaves them out. Fetch it again; if it is whole, python -m shards index --open-ended accepts it"
        )
    if len(header) < _BLOCK:
        what = "a header" if any(header) else "the blocks of zeros that close it"
        return ShardCorrupt(f"{name}: cut short inside {what} {reached.place}: {counted(size, 'byte is', 'bytes are')} there. {_AGAIN}")
    if at == 0:
        return ShardCorrupt(f"{name}: not a tar, or one whose first header is damaged ({reason or 'bad checksum'}). {_AGAIN}")
    if reason and _is_header(header):
        return ShardCorrupt(f"{name}: damaged or cut short {reached.place}: {reason}. {_AGAIN}")
    return ShardCorrupt(
        f"{name}: a damaged header {reached.place}: readers take it for the end and lose {counted(size - at, 'byte')} without "
        f"an error. {_AGAIN}"
    )


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True
