"""Exact k-nearest-neighbour classification by cosine similarity, streamed over the database.

The nearest pictures vote with the weight exp(similarity / 0.07), as in Wu et al. 2018 (arXiv:1805.01978), which is how features without
labels are usually judged. scikit-learn's `KNeighborsClassifier(metric="cosine", algorithm="brute", weights=...)` gives the same
predictions, but holds the whole database in memory, and runs on no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.probe.choice import Outcome, best_of
from pipeline.evaluation.probe.table import Standardised, chunk_rows
from shards.counting import counted

NEIGHBOURS = (1, 5, 20, 100)
"""Numbers of neighbours that are tried by default."""
TEMPERATURE = 0.07
_QUERIES = 8192
"""Queries that are held at a time: the database is read once for each such part of them."""
_BLOCK = 1024
"""Queries that are compared with a chunk of the database at once."""
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Neighbours:
    """Nearest rows of a database.

    Attributes:
        similarities: float32 (queries, k), descending.
        ids: int64 (queries, k), ids of the rows; of equally similar ones the lower id stands first.
    """

    similarities: Tensor
    ids: Tensor


Database = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Function that begins a pass over a database: ids, int64 (n,), ascending, and rows, float32 (n, width), a chunk at a time."""


def unit_rows(values: Tensor) -> Tensor:
    """Rows of float32 (n, width) scaled to length 1; a row of zeros stays 0, at similarity 0 to every other row."""
    lengths: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return values / lengths.clamp(min=1e-30)


def nearest(queries: Tensor, database: Iterable[tuple[Tensor, Tensor]], k: int, own: Tensor | None = None) -> Neighbours:
    """Finds the k most similar rows of a database for each query, in one pass.

    Args:
        queries: float32 (queries, width), rows of length 1.
        database: ids, int64 (n,), ascending and below 2**32, and rows of length 1, float32 (n, width), a chunk at a time.
        k: number of neighbours.
        own: int64 (queries,), id of each query's own row, which is passed over; -1 for a query that is not in the database.

    Raises:
        ValueError: the database has fewer rows than neighbours are wanted.
    """
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for ids, rows in database:
        found = torch.empty(len(queries), min(k, len(ids)), dtype=torch.int64, device=queries.device)
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            similarities = queries[block] @ rows.T
            if own is not None:
                places = torch.searchsorted(ids, own[block]).clamp(max=len(ids) - 1)
                (present,) = torch.nonzero(ids[places] == own[block], as_tuple=True)
                similarities[present, places[present]] = -torch.inf
            found[block] = _keys(similarities, ids).topk(found.shape[1], dim=1, sorted=False).values
        joined = torch.cat([best, found], dim=1)
        best = joined.topk(min(k, joined.shape[1]), dim=1).values
    similarities, ids = _from_keys(best)
    if best.shape[1] < k or not bool(torch.isfinite(similarities).all()):
        raise ValueError(f"{counted(k, 'neighbour')} can't be found among so few rows")
    return Neighbours(similarities, ids)


def _keys(similarities: Tensor, ids: Tensor) -> Tensor:
    """One integer for each pair, in the order of (similarity, lower id first), because `topk` alone breaks ties as it likes."""
    bits = (similarities + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count down as their bits count up
    return (ordered.long() << 32) | (_LOW - ids)


def _from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32), _LOW - (keys & _LOW)


def vote(neighbours: Neighbours, labels: Tensor, classes: int, k: int) -> Tensor:
    """Predicts a class for each query from its k nearest neighbours.

    Args:
        neighbours: k or more neighbours of each query.
        labels: int64 (rows,), class of every id.
        classes: number of classes.
        k: neighbours that vote.

    Returns:
        int64 (queries,); of classes with the same votes the lower one.
    """
    near = neighbours.similarities[:, :k].double()
    weights = torch.exp((near - near[:, :1]) / TEMPERATURE)  # over the nearest one's weight, so that none overflows
    votes = torch.zeros(len(near), classes, dtype=torch.float64, device=near.device)
    votes.scatter_add_(1, labels[neighbours.ids[:, :k]], weights)
    return torch.from_numpy(votes.cpu().numpy().argmax(1))  # NumPy's argmax takes the first of equals on every device


def classify(
    features: Standardised, training: NDArray[np.int64], test: NDArray[np.int64], labels: NDArray[np.int64], classes: int, ks: Sequence[int]
) -> Outcome:
    """Classifies the test rows by their nearest training rows.

    The number of neighbours is the one with which the training rows, each left out in turn, classify each other best; the smallest of
    equals.

    Args:
        features: features, standardised over the training rows.
        training: int64 (n,), rows of the training folds, ascending.
        test: int64 (m,), rows of the test fold, ascending.
        labels: int64 (rows of the table,), class of every row.
        classes: number of classes.
        ks: numbers of neighbours to try, ascending; those of n or more are left out.
    """
    tried = [k for k in ks if k < len(training)] or [1]
    known = torch.from_numpy(labels).to(features.device)
    every = np.sort(np.concatenate([training, test]))
    in_training = np.isin(every, training)
    predictions = {k: np.empty(len(every), np.int64) for k in tried}

    def database() -> Iterable[tuple[Tensor, Tensor]]:
        for places, rows in features.chunks(training, torch.float32):
            yield torch.from_numpy(training[places]).to(features.device), unit_rows(rows)

    step = min(_QUERIES, max(_BLOCK, 8 * chunk_rows(features.table.width)))
    for start in range(0, len(every), step):
        part = slice(start, start + step)
        queries = unit_rows(features.whole(every[part], torch.float32))
        own = torch.from_numpy(np.where(in_training[part], every[part], -1)).to(features.device)
        found = nearest(queries, database(), tried[-1], own)
        for k in tried:
            predictions[k][part] = vote(found, known, classes, k).numpy()
    right = [float(np.mean(predictions[k][in_training] == labels[training])) for k in tried]
    chosen = best_of([-share for share in right])
    # fewer than one neighbour can't be tried, so that only the upper end may be too near
    at_end = len(tried) > 1 and chosen == len(tried) - 1
    return Outcome(predictions[tried[chosen]][~in_training], tried[chosen], right[chosen], "upper" if at_end else "")
