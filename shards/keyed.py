"""Random numbers that are a function of a key alone, never of what was drawn before.

Everything random about a sample (its place in the order, its crop, its mask, its dropout) is drawn from here, so that it depends on
(seed, epoch, sample id) and not on the machine, the number of ranks or the moment of an interruption. SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014) serves the few numbers a sample needs, Philox (Salmon et al., SC 2011) the permutations. Only raw 64-bit outputs are
used: NumPy keeps those stable between its versions, which it does not promise for the methods of `Generator`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_FEW = 6


def mix(value: int) -> int:
    """SplitMix64's finaliser: 64 bits in, 64 well mixed bits out."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies `mix` to every element of a uint64 array."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*parts: int) -> int:
    """Mixes several integers, whose order matters, into one 64-bit key."""
    key = 0
    for part in parts:
        key = mix((key + _GOLDEN + (part & _MASK)) & _MASK)
    return key


def sample_keys(seed: int, epoch: int, sample_ids: ArrayLike) -> NDArray[np.uint64]:
    """Returns the key of each sample in an epoch.

    Args:
        seed: seed of the run.
        epoch: epoch of the sample's own data set, from 0.
        sample_ids: int64 (n,), ids of the samples.

    Returns:
        uint64 (n,), equal to `key_of(seed, epoch, sample_id)` element by element.
    """
    ids = np.asarray(sample_ids, dtype=np.int64).astype(np.uint64)
    return mix_array(ids + np.uint64((key_of(seed, epoch) + _GOLDEN) & _MASK))


def words(key: int, purpose: int, count: int) -> list[int]:
    """Returns the first `count` of the 64-bit integers behind `uniforms`; up to about 24 cost less this way."""
    state, found = key_of(key, purpose), []
    for _ in range(count):
        state = (state + _GOLDEN) & _MASK
        value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK  # `mix` without the cost of a call
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        found.append(value ^ (value >> 31))
    return found


def words_of(keys: NDArray[np.uint64], purpose: int, count: int) -> NDArray[np.uint64]:
    """Returns `words` of many keys at once.

    Args:
        keys: uint64 (n,).
        purpose: number of the purpose (crop, mask, ...); different purposes give independent numbers.
        count: numbers per key.

    Returns:
        uint64 (n, count).
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return mix_array(derived_keys(keys, purpose)[:, None] + steps)


def derived_keys(keys: NDArray[np.uint64], purpose: int) -> NDArray[np.uint64]:
    """Returns `key_of(key, purpose)` of every element of a uint64 array."""
    golden = np.uint64(_GOLDEN)
    return mix_array(mix_array(keys + golden) + np.uint64((_GOLDEN + purpose) & _MASK))


def uniforms(key: int, purpose: int, count: int) -> NDArray[np.float64]:
    """Draws `count` numbers in [0, 1) for one key. Different purposes (crop, mask, ...) give independent numbers.

    Returns:
        float64 (count,).
    """
    start = key_of(key, purpose)
    if count <= _FEW:  # for a handful, arrays cost more than they save
        return np.array([(mix((start + step * _GOLDEN) & _MASK) >> 11) * 2.0**-53 for step in range(1, count + 1)])
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (mix_array(np.uint64(start) + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """Returns a permutation of range(count) for a key of up to five integers.

    Returns:
        int64 (count,).
    """
    bits = np.random.Philox(key=np.array([key_of(*key), 0], dtype=np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)
