"""Values that ranks measure of different pictures, put together without rounding.

Every rank fills its own rows of a table of zeros, and the sum over the ranks is the whole table. Figures that are made from whole tables do
not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.training.ranks.world import World


class Tables:
    """Tables that are filled row by row, and then summed over the ranks.

    Args:
        rows: number of rows of a table that is filled with one row a picture.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._tables: dict[str, Tensor] = {}

    def put(self, name: str, start: int, values: Tensor, rows: int | None = None) -> None:
        """Fills rows of a table; the first call makes the table with zeros everywhere else.

        Args:
            name: name of the table.
            start: first row to fill.
            values: float or bool (n, ...), the rows.
            rows: number of rows of the table, if these are not one a picture.
        """
        values = values.detach().to("cpu")
        values = values.double() if values.dtype in (torch.bool, torch.float64, torch.int64) else values.float()
        if name not in self._tables:
            self._tables[name] = torch.zeros((self._rows if rows is None else rows, *values.shape[1:]), dtype=values.dtype)
        self._tables[name][start : start + len(values)] = values

    def sum(self, world: World) -> Mapping[str, Tensor]:
        """Sums the tables over the ranks, each of which has put values into every table at least once."""
        return {name: world.sum(self._tables[name]) for name in sorted(self._tables)}
