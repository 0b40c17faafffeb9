"""Finds tars that are in a data set twice, such as the target of a link `latest.tar` beside the link."""

from __future__ import annotations

from collections.abc import Sequence

from shards.counting import counted
from shards.dataset.manifest import ShardRecord

_SHOWN = 3


def repeated_tars(records: Sequence[ShardRecord]) -> list[str]:
    """Returns the line that names tars with the bytes of an earlier one; empty if there are none.

    Tars are the same if their sha256 is. Of tars that were not read, size, version and index must be equal.
    """
    first: dict[tuple[object, ...], str] = {}
    repeated: list[tuple[ShardRecord, str]] = []
    for record in records:
        key = (record.sha256,) if record.sha256 else (record.size, record.version, record.index_sha256)
        if not record.count or not (record.sha256 or record.version):
            continue
        if (same := first.setdefault(key, record.name)) != record.name:
            repeated.append((record, same))
    if not repeated:
        return []
    shown = ", ".join(f"{same} and {record.name}" for record, same in repeated[:_SHOWN]) + (", ..." if len(repeated) > _SHOWN else "")
    samples = counted(sum(record.count for record, _ in repeated), "sample is", "samples are")
    return [
        f"  warning: the same tar twice: {shown}; {samples} there twice, and training "
        "takes both. Remove the copy or the link, or name the tars by a pattern that leaves it out"
    ]
