"""Exact search for the nearest of any number of stored vectors, a chunk at a time.

Vectors hold whole numbers (see `Describer`), so that every sum below is exact in float32 and of equally near vectors the one with the
smaller id is found, however the stored vectors are divided into chunks and these among ranks, threads and devices.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST = float(1 << 24)
"""Largest square of a vector's length: up to here float32 holds every whole number."""
_QUERIES = 1024
"""Queries that are compared with a chunk at once."""


def nearest(
    values: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    vectors: NDArray[np.float32],
    first_id: int,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Finds the nearest vector of a chunk for each query: the smallest sum of weight * (query - vector)**2, then the smallest id.

    Args:
        values: queries float32 (n, D) of whole numbers.
        weights: weights float32 (n, G) of 0 or 1, each for D / G consecutive values; None weighs all alike.
        vectors: stored vectors float32 (m, D) of whole numbers, m at least 1.
        first_id: id of the first stored vector; the others follow.
        device: device that searches.

    Returns:
        Squared distances float64 (n,), exact, and ids int64 (n,). A query whose weights are all 0 is at distance 0 from every vector.

    Raises:
        ValueError: values are not whole numbers, or a vector is longer than 2**12.
    """
    stored, asked = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (vectors, values))
    groups = 1 if weights is None else weights.shape[1]
    weighed = None if weights is None else torch.from_numpy(np.ascontiguousarray(weights)).to(device)
    lengths, own = _group_lengths(stored, groups), _group_lengths(asked, groups)
    places = torch.arange(len(stored), device=stored.device)
    distances, ids = np.empty(len(values), np.float64), np.empty(len(values), np.int64)
    for start in range(0, len(values), _QUERIES):
        part = slice(start, start + _QUERIES)
        query = asked[part]
        if weighed is None:
            squares, offsets = lengths[:, 0].expand(len(query), -1), own[part, 0]
        else:
            query = (query.view(len(query), groups, -1) * weighed[part, :, None]).flatten(1)
            squares, offsets = weighed[part] @ lengths.T, (weighed[part] * own[part]).sum(1)
        # twice the products and the squares are whole numbers below 2**26, and ids join them, because `argmin` may take any of equals
        found = squares.long() - 2 * (query @ stored.T).long()
        best = (found * len(stored) + places).amin(1)
        place = best.remainder(len(stored))
        distances[part] = (best.sub(place).div(len(stored), rounding_mode="floor") + offsets.long()).cpu().numpy()
        ids[part] = place.cpu().numpy() + first_id
    return distances, ids


def merge(
    first: tuple[NDArray[np.float64], NDArray[np.int64]], second: tuple[NDArray[np.float64], NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Joins the neighbours of the same queries in two chunks: the smaller distance, then the smaller id.

    Args:
        first: distances float64 (n,) and ids int64 (n,) of one chunk.
        second: distances and ids of another chunk, in the same order of queries.
    """
    better = (second[0] < first[0]) | ((second[0] == first[0]) & (second[1] < first[1]))
    return np.where(better, second[0], first[0]), np.where(better, second[1], first[1])


def _group_lengths(rows: Tensor, groups: int) -> Tensor:
    """Squares of the lengths of `groups` equal parts of each row, float32 (n, groups), exact.

    Raises:
        ValueError: values are not whole numbers, or a row is longer than 2**12.
    """
    squares: Tensor = rows.square().view(len(rows), groups, -1).sum(2, dtype=torch.float64)
    if not bool((rows == rows.round()).all()) or bool((squares.sum(1) > LARGEST).any()):
        raise ValueError("vectors must hold whole numbers and have a length of at most 2**12, for sums to be exact")
    return squares.float()
