"""Headers of tar members, read in a fraction of tarfile's time where a member is of the plainest kind.

Nearly all members of a shard are regular files with a short name. Of their headers only name, size and checksum are read. Any other kind
(long names, links, folders, sparse files, sizes past 8 GiB, odd or damaged fields) goes to tarfile's own code.
"""

from __future__ import annotations

import tarfile
from typing import Self

_BLOCK = tarfile.BLOCKSIZE
_PLAIN = ord(tarfile.REGTYPE)
_NUMBER = b" \0"  # what surrounds the octal digits of a number
_EIGHT_SPACES = 8 * ord(" ")  # the checksum is taken with its own field blank


class TarMember(tarfile.TarInfo):
    """A member as tarfile describes it, but without owner, mode and time where the member is plain."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads the 512 bytes of a header.

        Raises:
            tarfile.HeaderError: the header is damaged, as in tarfile.
        """
        # a byte at 345 begins the folder of a long name
        if len(buf) == _BLOCK and buf[156] == _PLAIN and not buf[345]:
            try:
                checksum = int(buf[148:156].strip(_NUMBER), 8)
                size = int(buf[124:136].strip(_NUMBER), 8)
            except ValueError:  # blank, or in base 256
                return super().frombuf(buf, encoding, errors)
            if checksum == sum(buf) - sum(buf[148:156]) + _EIGHT_SPACES:
                member = cls(buf[:100].split(b"\0", 1)[0].decode(encoding, errors))
                member.size = size
                member.type = tarfile.REGTYPE
                return member
        return super().frombuf(buf, encoding, errors)
