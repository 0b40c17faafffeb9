"""The segments in front of a JPEG's coded pixels, also of one with stray or fill bytes between its segments."""

from __future__ import annotations

from collections.abc import Iterator

SOS = 0xDA
"""Marker of the segment behind which the coded pixels begin."""
BARE = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
"""Second bytes of markers without a length, none of which belongs before the scan."""


def segments_of(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the second byte of each segment's marker, the offset of the marker, and the offset behind the segment; that of SOS last.

    Args:
        jpeg: bytes of a JPEG.
    """
    place = 2
    while (place := jpeg.find(b"\xff", place)) >= 0 and place + 4 <= len(jpeg):
        marker = jpeg[place + 1]
        if marker in BARE:
            place += 1
            continue
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        yield marker, place, end
        if marker == SOS:
            return
        place = end
