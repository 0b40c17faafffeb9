"""Keyed random numbers: a function of their key, the same everywhere and for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards import keyed

integers = st.integers(-(2**63), 2**63 - 1)


def test_splitmix_is_the_published_one() -> None:
    state, first = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        first.append(keyed.mix(state))
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # the reference generator seeded with 1234567


@given(integers, integers, st.lists(integers, max_size=5))
def test_keys_of_samples_are_key_of_element_by_element(seed: int, epoch: int, ids: list[int]) -> None:
    assert keyed.sample_keys(seed, epoch, ids).tolist() == [keyed.key_of(seed, epoch, sample) for sample in ids]


@given(integers, st.integers(0, 5000))
def test_a_permutation_holds_every_number_once(key: int, count: int) -> None:
    order = keyed.permutation(count, key, 3)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, keyed.permutation(count, key, 3))


def test_numbers_stay_what_they_were() -> None:
    """Another NumPy, machine or edit must not change them: runs would resume into another order."""
    assert keyed.key_of(1, 2, 3) == 7702586659592502839
    assert keyed.sample_keys(1, 2, [0, 7]).tolist() == [16613338946343043936, 9311413582032844494]
    assert keyed.permutation(8, 1, 2).tolist() == [5, 1, 3, 2, 6, 0, 7, 4]
    assert keyed.uniforms(5, 1, 2).tolist() == [0.6449285097422731, 0.05777605641251937]


def test_permutations_mix_well() -> None:
    order = keyed.permutation(10_000, 0)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert not np.array_equal(order, keyed.permutation(10_000, 1))


def test_uniforms_fill_the_unit_interval_and_differ_by_purpose() -> None:
    numbers = np.array([keyed.uniforms(key, 0, 4) for key in range(2000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.1
    other = np.array([keyed.uniforms(key, 1, 4) for key in range(2000)])
    assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.1


def test_words_of_many_keys_are_the_words_of_each() -> None:
    keys = np.array([0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF], np.uint64)
    assert keyed.words_of(keys, 7, 4).tolist() == [keyed.words(int(key), 7, 4) for key in keys]
