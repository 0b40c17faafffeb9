"""The search of the nearest vector: exact, of equals the smaller id, the same bits in every division and for any number of threads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from pipeline.evaluation.inpainting.fills import merge, nearest
from pipeline.evaluation.inpainting.fills.neighbours import Neighbours


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn(draw: random.Random, rows: int, width: int, length: float = 4000) -> NDArray[np.int16]:
    """Whole numbers in vectors of about a length."""
    values = np.random.default_rng(draw.randrange(1 << 32)).normal(size=(rows, width))
    return (values * (length / np.linalg.norm(values, axis=1, keepdims=True))).round().astype(np.int16)


def weights_of(draw: random.Random, rows: int, groups: int) -> NDArray[np.float32]:
    return (np.random.default_rng(draw.randrange(1 << 32)).random((rows, groups)) < 0.6).astype(np.float32)


def weighed_by(weights: NDArray[np.float32] | None, values: NDArray[np.int16]) -> NDArray[np.int16]:
    """Queries with 0 where they have no weight."""
    if weights is None:
        return values
    return values * np.repeat(weights, values.shape[1] // weights.shape[1], axis=1).astype(np.int16)


def in_chunks(values: NDArray[np.int16], weights: NDArray[np.float32] | None, vectors: NDArray[np.int16], size: int) -> Neighbours:
    """The nearest vectors, found in chunks that are merged in the opposite order."""
    parts = [nearest(values, weights, vectors[start : start + size], start) for start in range(0, len(vectors), size)]
    found = parts.pop()
    while parts:
        found = merge(found, parts.pop())
    return found


def exactly(values: NDArray[np.int16], weights: NDArray[np.float32] | None, vectors: NDArray[np.int16]) -> Neighbours:
    """The same with integers, one pair after the other."""
    whole, each = vectors.astype(np.int64), 1 if weights is None else values.shape[1] // weights.shape[1]
    distances, ids = [], []
    for number, value in enumerate(values.astype(np.int64)):
        weight = 1 if weights is None else np.repeat(weights[number].astype(np.int64), each)
        of_all = (weight * (value - whole) ** 2).sum(1)
        ids.append(int(of_all.argmin()))
        distances.append(float(of_all.min()))
    return np.array(distances), np.array(ids)


@pytest.mark.parametrize("groups", [None, 1, 12, 60])
@pytest.mark.parametrize("size", [1, 17, 1000])
def test_it_is_exact_in_any_chunks(groups: int | None, size: int, draw: random.Random) -> None:
    values, vectors = drawn(draw, 30, 60), drawn(draw, 101, 60)
    weights = None if groups is None else weights_of(draw, 30, groups)
    values = weighed_by(weights, values)
    wanted = exactly(values, weights, vectors)
    for found, right in zip(in_chunks(values, weights, vectors, size), wanted, strict=True):
        assert np.array_equal(found, right)


def test_it_finds_what_scikit_learn_finds(draw: random.Random) -> None:
    values, vectors = drawn(draw, 1100, 256), drawn(draw, 500, 256)  # more queries than are compared at once
    distances, ids = nearest(values, None, vectors, 1000)
    model = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(vectors.astype(np.float64))
    theirs, places = model.kneighbors(values.astype(np.float64))
    assert np.array_equal(ids, places[:, 0] + 1000)
    assert np.allclose(np.sqrt(distances), theirs[:, 0])


@pytest.mark.parametrize("weighed", [False, True])
def test_threads_and_the_order_of_the_sums_do_not_change_a_bit(weighed: bool, draw: random.Random) -> None:
    values, vectors = drawn(draw, 70, 8100, 3900), drawn(draw, 300, 8100, 3900)
    weights = weights_of(draw, 70, 225) if weighed else None
    values = weighed_by(weights, values)
    order = np.random.default_rng(draw.randrange(1 << 32)).permutation(8100 if weights is None else 225)
    columns = order if weights is None else (order[:, None] * 36 + np.arange(36)).ravel()
    shuffled = None if weights is None else weights[:, order]
    found = []
    for count in (1, 2):
        with threads(count):
            found += [nearest(values, weights, vectors, 5), nearest(values[:, columns], shuffled, vectors[:, columns], 5)]
    for each in found[1:]:
        assert all(np.array_equal(*pair) for pair in zip(each, found[0], strict=True))


@pytest.mark.parametrize("size", [2, 3, 40])
def test_of_equally_near_vectors_the_smaller_id_is_found(size: int, draw: random.Random) -> None:
    vectors = np.tile(drawn(draw, 4, 16), (10, 1))
    order = np.random.default_rng(draw.randrange(1 << 32)).permutation(40)
    first = {row: int(np.argmax(order % 4 == row)) for row in range(4)}
    distances, ids = in_chunks(vectors[:4], None, vectors[order], size)
    assert ids.tolist() == [first[row] for row in range(4)]
    assert not distances.any()
    nothing = np.zeros((4, 2), np.float32)  # no value weighs: every vector is as near as the others
    assert in_chunks(np.zeros_like(vectors[:4]), nothing, vectors[order], size)[1].tolist() == [0, 0, 0, 0]


def test_the_longest_vectors_are_exact_and_longer_ones_and_fractions_are_refused() -> None:
    longest = np.zeros((2, 4), np.int16)
    longest[0, 0], longest[1, 0] = 4095, -4095
    assert nearest(longest[:1], None, longest[1:], 0)[0] == [8190.0**2]
    for wrong, why in ((np.array([[4095, 90, 10, 0]], np.int16), "shorter than"), (np.ones((1, 4), np.float32), "must be int16")):
        with pytest.raises(ValueError, match=why):
            nearest(wrong, None, longest, 0)
        with pytest.raises(ValueError, match=why):
            nearest(longest, None, wrong, 0)
