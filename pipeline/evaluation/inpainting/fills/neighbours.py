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
"""Limit of the square of a vector's length: up to here float32 holds every whole number."""
_QUERIES = 1024
"""Queries that are compared with a chunk at once."""
Neighbours = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Squared distances float64 (n,) and ids int64 (n,) of the nearest vectors of n queries."""


def nearest(
    values: NDArray[np.int16],
    weights: NDArray[np.float32] | None,
    vectors: NDArray[np.int16],
    first_id: int,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """Finds the nearest vector of a chunk for each query: the smallest sum of weight * (query - vector)**2, then the smallest id.

    Args:
        values: queries int16 (n, D), 0 where they have no weight.
        weights: weights float32 (n, G) of 0 or 1, each for D / G consecutive values; None weighs all alike.
        vectors: stored vectors int16 (m, D), m at least 1.
        first_id: id of the first stored vector; the others follow.
        device: device that searches.

    Returns:
        Squared distances, exact, and ids. A query whose weights are all 0 is at distance 0 from every vector.

    Raises:
        ValueError: vectors are not int16, or one is not shorter than 2**12.
    """
    groups = 1 if weights is None else weights.shape[1]
    stored = _numbers(vectors, device)
    lengths, places = _group_lengths(stored, groups), torch.arange(len(stored), device=device)
    distances, ids = np.empty(len(values), np.float64), np.empty(len(values), np.int64)
    for start in range(0, len(values), _QUERIES):
        part = slice(start, start + _QUERIES)
        query = _numbers(values[part], device)
        weighed = torch.ones(len(query), 1, device=device) if weights is None else torch.tensor(weights[part], device=device)
        # whole numbers below 2**25, with the place joined to them, because `argmin` may take any of equals
        apart = (weighed @ lengths.T).long() - 2 * (query @ stored.T).long()
        best = (apart * len(stored) + places).amin(1)
        place = best.remainder(len(stored))
        smallest = (best - place).div(len(stored), rounding_mode="floor") + _group_lengths(query, 1)[:, 0].long()
        distances[part], ids[part] = smallest.cpu().numpy(), place.cpu().numpy() + first_id
    return distances, ids


def merge(first: Neighbours, second: Neighbours) -> Neighbours:
    """Joins the neighbours of the same queries in two chunks: the smaller distance, then the smaller id."""
    better = (second[0] < first[0]) | ((second[0] == first[0]) & (second[1] < first[1]))
    return np.where(better, second[0], first[0]), np.where(better, second[1], first[1])


def _numbers(vectors: NDArray[np.int16], device: str | torch.device) -> Tensor:
    """Vectors as float32 on a device."""
    if vectors.dtype != np.int16:
        raise ValueError(f"vectors must be int16, for sums to be exact, and these are {vectors.dtype}")
    return torch.from_numpy(vectors.astype(np.float32)).to(device)


def _group_lengths(rows: Tensor, groups: int) -> Tensor:
    """Squares of the lengths of `groups` equal parts of each row, float32 (n, groups), exact: an inexact sum is LARGEST or more."""
    parts = rows.view(len(rows), groups, -1)
    squares = torch.einsum("ngk,ngk->ng", parts, parts)
    if bool((squares.sum(1) >= LARGEST).any()):
        raise ValueError("vectors must be shorter than 2**12, for sums to be exact")
    return squares
