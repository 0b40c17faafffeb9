"""The quick reader of headers says what tarfile says, for every header."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.tar.member import TarMember

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CONTTYPE]
Found = tuple[str, int, bytes] | None


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """The last block of a header, which follows those of a long name."""
    member = tarfile.TarInfo(draw(st.text("ab/.é", min_size=1, max_size=140)))
    member.size = draw(st.integers(0, 2**33 - 1) | st.integers(0, 2**40))
    member.type = draw(st.sampled_from(KINDS))
    try:
        return member.tobuf(draw(st.sampled_from(FORMATS)), "utf-8", "surrogateescape")[-tarfile.BLOCKSIZE :]
    except ValueError:  # what ustar can't hold
        return member.tobuf(tarfile.PAX_FORMAT)[-tarfile.BLOCKSIZE :]


def read(kind: type[tarfile.TarInfo], header: bytes) -> Found:
    try:
        member = kind.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:  # type: ignore[attr-defined]
        return None
    return member.name, member.size, member.type


@given(headers())
def test_every_header_reads_as_tarfile_reads_it(header: bytes) -> None:
    found = read(TarMember, header)
    assert found is not None
    assert found == read(tarfile.TarInfo, header)


@given(headers(), st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_header_is_refused_as_tarfile_refuses_it(header: bytes, place: int, change: int) -> None:
    data = bytearray(header)
    data[place] ^= change
    assert read(TarMember, bytes(data)) == read(tarfile.TarInfo, bytes(data))


@pytest.mark.parametrize("header", [b"", b"x" * 100, bytes(512)])
def test_what_is_no_header_is_none(header: bytes) -> None:
    assert read(TarMember, header) is None
