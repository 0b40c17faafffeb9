"""The nearest rows of a database, exactly, whichever way the database is cut into chunks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pipeline.evaluation.probe.neighbours import Neighbours, nearest, unit_rows, vote
from tests.conftest import ROOT


def chunks(rows: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(rows), size):
        yield torch.arange(start, min(start + size, len(rows))), rows[start : start + size]


def drawn(draw: random.Random, *shape: int) -> Tensor:
    return unit_rows(torch.randn(*shape, generator=torch.Generator().manual_seed(draw.randrange(1 << 30))))


@pytest.mark.parametrize("size", [7, 50, 1000])
def test_they_are_those_of_scikit_learn_for_any_chunks(size: int, draw: random.Random) -> None:
    database, queries = drawn(draw, 211, 32), drawn(draw, 1500, 32)  # more queries than are compared at once
    found = nearest(queries, chunks(database, size), 9)
    model = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(database.double().numpy())
    distances, ids = model.kneighbors(queries.double().numpy())
    assert np.mean(found.ids.numpy() == ids) > 0.999  # two similarities may differ by less than float32 tells
    assert np.allclose(1 - found.similarities.numpy(), distances, atol=1e-5)


def test_of_equally_similar_rows_the_lower_id_stands_first_in_every_chunking() -> None:
    # whole numbers, so that every similarity is exact: 40 rows in four directions, ten of each, and their opposites
    database = torch.eye(4).repeat(10, 1)
    queries = torch.cat([torch.eye(4), -torch.eye(4)])
    for size in (1, 3, 8, 40):
        found = nearest(queries, chunks(database, size), 12)
        assert found.ids[1].tolist() == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 0, 2]
        assert found.similarities[1].tolist() == [1.0] * 10 + [0.0] * 2
        assert found.ids[5].tolist() == [0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15]  # -0.0 and 0.0 are equal


def test_a_row_is_not_its_own_neighbour(draw: random.Random) -> None:
    database = drawn(draw, 60, 8)
    own = torch.arange(60)
    own[::3] = -1
    for size in (7, 60):
        found = nearest(database, chunks(database, size), 3, own)
        assert found.ids[::3, 0].tolist() == list(range(0, 60, 3))
        assert not bool((found.ids[own >= 0] == own[own >= 0, None]).any())


def test_more_neighbours_than_rows_are_refused(draw: random.Random) -> None:
    database = drawn(draw, 5, 8)
    with pytest.raises(ValueError, match="6 neighbours"):
        nearest(database, chunks(database, 2), 6)
    with pytest.raises(ValueError, match="5 neighbours"):
        nearest(database, chunks(database, 2), 5, torch.arange(5))


def test_votes_by_hand() -> None:
    # one very near neighbour of class 2 outweighs two farther ones of class 1: exp(0.2 / 0.07) = 17 times a vote
    found = Neighbours(torch.tensor([[0.9, 0.7, 0.7], [0.9, 0.89, 0.88], [0.5, 0.5, 0.1]]), torch.tensor([[4, 1, 2], [4, 1, 2], [4, 1, 0]]))
    labels = torch.tensor([0, 1, 1, 0, 2])
    assert vote(found, labels, 3, 3).tolist() == [2, 1, 1]  # of equal votes the lower class
    assert vote(found, labels, 3, 1).tolist() == [2, 2, 2]


@pytest.mark.slow
def test_the_benchmark_measures_a_search_of_its_own_process() -> None:
    sizes = ("--queries", "64", "--database", "700", "--values", "48")
    command = [sys.executable, "-m", "benchmarks.neighbours", *sizes]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other would take most of the time
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "700 of 700 vectors" in done.stderr
    row = done.stdout.splitlines()[-1]
    assert row.startswith("| 64 | 700 | 48 | ")
    assert row.endswith("GB (6 GB) | 20, 0 |")
