"""The units that the samples of a data set are cut into: consecutive ids, so that shards are read from front to back.

Units and the batches in them follow from the number of samples and of values alone, never from the ranks, so that a unit's features have
the same bits whoever computes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Unit:
    """One piece of work, and one part file.

    Attributes:
        number: number of the unit, from 0.
        start: id of the unit's first sample.
        stop: id behind the unit's last sample.
    """

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, size: int) -> Iterator[range]:
        """Yields the ids of the unit's batches; the last one may be smaller."""
        for first in range(self.start, self.stop, size):
            yield range(first, min(first + size, self.stop))


def rows_of_unit(most: int, batch: int, row_bytes: int) -> int:
    """Chooses the samples of a unit: whole batches, of 64 MiB of features at most if one batch allows it.

    Args:
        most: most samples of a unit; a batch may be more.
        batch: samples of a batch.
        row_bytes: bytes of a sample's features.
    """
    return max(1, min(most, _MOST_BYTES // row_bytes) // batch) * batch


def cut_units(samples: int, rows: int) -> list[Unit]:
    """Cuts the ids from 0 to `samples` into units of `rows` samples; the last one may be smaller."""
    return [Unit(number, start, min(start + rows, samples)) for number, start in enumerate(range(0, samples, rows))]


def in_turn(missing: Sequence[Unit], rank: int, world_size: int) -> Sequence[Unit]:
    """Orders units for a rank: its own even share first, then those of the next ranks, all the way round.

    So ranks start far from each other, and a rank that is done takes work from one that is slow or gone.
    """
    first = len(missing) * rank // world_size
    return [*missing[first:], *missing[:first]]
