"""Random numbers on the device that are a function of a sample's key alone: `shards.keyed` in torch operations.

Dropout from the device's own generator would depend on which rank a sample went to and on what that rank drew before. A counter-based
generator costs a dozen integer operations a word, so that dropout takes one word for four elements. int64 stands for the unsigned words,
since torch computes with those on every device: products wrap around, and shifts are made logical by a mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DROPOUT, NOISE = 1, 2
"""Purposes of random numbers; the numbers of different purposes are independent."""

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifts logically to the right."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: Tensor) -> Tensor:
    """Mixes bits by SplitMix64's finaliser, as `shards.keyed.mix`."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def keyed_words(keys: Tensor, count: int, purpose: int) -> Tensor:
    """The 64-bit words of `shards.keyed.words(key, purpose, count)` for each key.

    Args:
        keys: int64 (n,), the bits of unsigned keys.
        count: words per key.
        purpose: purpose of the words.

    Returns:
        int64 (n, count) on the keys' device, the bits of unsigned words.
    """
    start = _mix(_mix(keys + _GOLDEN) + _GOLDEN + purpose)
    steps = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * _GOLDEN
    return _mix(start[:, None] + steps)


def keyed_uniforms(keys: Tensor, count: int, purpose: int) -> Tensor:
    """Numbers in [0, 1) for each key: those of `shards.keyed.uniforms`, rounded down to 24 bits.

    Returns:
        float32 (n, count).
    """
    return _shifted(keyed_words(keys, count, purpose), 40).to(torch.float32) * 2.0**-24


def keyed_normals(keys: Tensor, count: int, purpose: int = NOISE) -> Tensor:
    """Standard normal numbers for each key (Box-Muller; at most 6.7 in size).

    The words are equal on every device; logarithm and cosine may differ there in the last bit.

    Returns:
        float32 (n, count).
    """
    words = keyed_words(keys, (count + 1) // 2, purpose)
    radius = torch.sqrt(-2 * torch.log((_shifted(words, 32).to(torch.float32) + 1) * 2.0**-32))
    angle = (words & 0xFFFFFFFF).to(torch.float32) * (2 * math.pi * 2.0**-32)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]


def keyed_dropout(values: Tensor, keys: Tensor, probability: float, purpose: int = DROPOUT) -> Tensor:
    """Sets elements to zero with a probability, and scales the others so that the mean stays.

    Args:
        values: float (n, ...).
        keys: int64 (n,).
        probability: probability of zero, in [0, 1), rounded to 1/65536.
        purpose: purpose of the random numbers; a network with two dropout layers needs two.

    Returns:
        Tensor like `values`. The dropped elements of a row depend only on its key and its number of elements.
    """
    threshold = min(round(probability * 65536), 65535)
    if threshold == 0:
        return values
    count = values[0].numel()
    lanes = keyed_words(keys, (count + 3) // 4, purpose).view(torch.int16)[:, :count]  # four elements a word
    kept = (lanes >= threshold - 32768).view(values.shape)
    return values * kept * (65536 / (65536 - threshold))
