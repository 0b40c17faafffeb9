"""Tables of features, one row a picture, in files that are read a piece at a time.

Files are read by ranges and not mapped into memory, because pages of a mapped file count as memory of the process: a probe of 100,000
pictures would seem to hold what it only looks at.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK_VALUES = 1 << 24
"""Values that are held at a time: 64 MiB of float32."""


def chunk_rows(width: int) -> int:
    """Rows of a chunk of a table of `width` values a row."""
    return max(1, min(1 << 16, _CHUNK_VALUES // max(1, width)))


class FeatureTable:
    """A table of float32 features in a file: rows are appended, then read by ranges.

    Args:
        path: file of the table, which is made anew.
        width: values of a row.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        self._rows = 0
        self._selected: NDArray[np.int64] | None = None
        self._file: IO[bytes] | None = open(path, "wb")  # noqa: SIM115 - closed by `finish`

    @classmethod
    def of(cls, path: Path, features: NDArray[np.float32]) -> FeatureTable:
        """Writes an array (n, width) as a table."""
        table = cls(path, features.shape[1])
        table.append(features)
        return table.finish()

    def append(self, rows: NDArray[np.float32]) -> None:
        """Adds rows, float32 (n, width).

        Raises:
            ValueError: rows of another width or type, or a table that is finished.
        """
        if self._file is None or rows.ndim != 2 or rows.shape[1] != self.width or rows.dtype != np.float32:
            raise ValueError(f"{self.path.name}: {rows.dtype} {rows.shape} can't be added to float32 (n, {self.width})")
        self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def finish(self) -> FeatureTable:
        """Ends the writing; returns the table itself."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return self

    def delete(self) -> None:
        """Removes the file."""
        self.finish()
        self.path.unlink(missing_ok=True)

    def only(self, rows: NDArray[np.int64]) -> FeatureTable:
        """The same file with some of its rows, int64 (n,), ascending, which are numbered anew."""
        table = copy.copy(self)
        table._selected = rows if self._selected is None else self._selected[rows]
        return table

    def __len__(self) -> int:
        return self._rows if self._selected is None else len(self._selected)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of the file, float32 (stop - start, width)."""
        wanted = (stop - start) * self.width
        values = np.fromfile(self.path, np.float32, wanted, offset=start * self.width * 4)
        if len(values) != wanted:
            raise OSError(f"{self.path}: ends before row {stop}. Something else has changed this scratch file")
        return values.reshape(-1, self.width)

    def chunks(self, rows: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Some rows, a chunk at a time.

        Args:
            rows: int64 (n,), numbers of the rows, ascending.

        Yields:
            the places of the chunk's rows in `rows`, and the features, float32 (places, width).
        """
        size = chunk_rows(self.width)
        in_file = rows if self._selected is None else self._selected[rows]
        for start in range(0, self._rows, size):
            first, last = (int(edge) for edge in np.searchsorted(in_file, [start, start + size]))
            if first == last:
                continue
            inside = in_file[first:last]
            found = self.read(int(inside[0]), int(inside[-1]) + 1)
            yield slice(first, last), found if len(found) == len(inside) else found[inside - inside[0]]


class Standardised:
    """Features less their mean, over their standard deviation, both taken over given rows alone.

    A feature that does not vary over those rows becomes 0 everywhere, because its scale is unknown.

    Args:
        table: table of the features.
        rows: int64 (n,), rows that the statistics are taken over, ascending: those of the training folds.
        device: device of the results.
    """

    def __init__(self, table: FeatureTable, rows: NDArray[np.int64], device: torch.device | None = None) -> None:
        self.table, self.device = table, device or torch.device("cpu")
        total = torch.zeros(table.width, dtype=torch.float64, device=self.device)
        for _, values in table.chunks(rows):
            total += torch.from_numpy(values).to(self.device).sum(0, dtype=torch.float64)
        self.mean = total / max(1, len(rows))
        squares = torch.zeros_like(total)
        for _, values in table.chunks(rows):  # a second pass, because a mean of squares less a squared mean loses its digits
            squares += (torch.from_numpy(values).to(self.device).double() - self.mean).square().sum(0)
        deviation = (squares / max(1, len(rows))).sqrt()
        varies = deviation > 1e-6 * self.mean.abs()  # float32 features differ by less where they are the same number
        self.scale = torch.where(varies, 1 / torch.where(varies, deviation, 1), 0)

    def chunks(self, rows: NDArray[np.int64], dtype: torch.dtype = torch.float64) -> Iterator[tuple[slice, Tensor]]:
        """Some rows, a chunk at a time, as `FeatureTable.chunks` gives them, each (places, width) of `dtype`."""
        for places, values in self.table.chunks(rows):
            yield places, ((torch.from_numpy(values).to(self.device).double() - self.mean) * self.scale).to(dtype)

    def whole(self, rows: NDArray[np.int64], dtype: torch.dtype = torch.float64) -> Tensor:
        """All given rows, (n, width) of `dtype`."""
        found = torch.empty(len(rows), self.table.width, dtype=dtype, device=self.device)
        for places, values in self.chunks(rows, dtype):
            found[places] = values
        return found
