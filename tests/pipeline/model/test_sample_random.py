"""Random numbers of a sample depend on its key alone, and are those of `shards.keyed` bit by bit."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.sample_random import DROPOUT, NOISE, keyed_dropout, keyed_normals, keyed_uniforms, keyed_words
from shards import keyed

keys = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5)


def as_tensor(values: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64))


@given(values=keys, purpose=st.integers(0, 2**31), count=st.integers(1, 40))
def test_words_are_those_of_the_host(values: list[int], purpose: int, count: int) -> None:
    drawn = keyed_words(as_tensor(values), count, purpose).numpy().view(np.uint64)
    assert [row.tolist() for row in drawn] == [keyed.words(value, purpose, count) for value in values]


@given(values=keys, purpose=st.integers(0, 2**31), count=st.integers(1, 40))
def test_uniforms_are_those_of_the_host_to_24_bits(values: list[int], purpose: int, count: int) -> None:
    drawn = keyed_uniforms(as_tensor(values), count, purpose)
    assert drawn.dtype == torch.float32
    for row, value in zip(drawn.double().numpy(), values, strict=True):
        behind = keyed.uniforms(value, purpose, count) - row
        assert behind.min() >= 0
        assert behind.max() < 2.0**-24


@given(key=st.integers(0, 2**64 - 1), purpose=st.integers(0, 2**31), count=st.integers(1, 40))
def test_host_words_are_what_host_uniforms_are_made_of(key: int, purpose: int, count: int) -> None:
    assert [(word >> 11) * 2.0**-53 for word in keyed.words(key, purpose, count)] == keyed.uniforms(key, purpose, count).tolist()


def test_uniforms_are_uniform_and_independent() -> None:
    drawn = keyed_uniforms(torch.arange(400), 1000, 7)  # neighbouring keys: the hardest case for a mixer
    counts = torch.histc(drawn, bins=64, min=0, max=1)
    expected = drawn.numel() / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 63 - 6 * math.sqrt(126) < chi_square < 63 + 6 * math.sqrt(126)
    centred = (drawn.double() - 0.5) * math.sqrt(12)
    bound = 6 / math.sqrt(drawn.numel())
    assert abs(float(centred.mean())) < bound
    assert abs(float((centred[:, 1:] * centred[:, :-1]).mean())) < bound
    assert abs(float((centred[1:] * centred[:-1]).mean())) < bound
    other = (keyed_uniforms(torch.arange(400), 1000, 8).double() - 0.5) * math.sqrt(12)
    assert abs(float((centred * other).mean())) < bound


def test_normals_are_normal_and_independent() -> None:
    drawn = keyed_normals(torch.arange(300) - 150, 1001).double()
    assert drawn.shape == (300, 1001)
    bound = 6 / math.sqrt(drawn.numel())
    ordered = drawn.flatten().sort().values
    distance = (torch.special.ndtr(ordered) - torch.linspace(0, 1, len(ordered), dtype=torch.float64)).abs().max()
    assert float(distance) < 2.5 / math.sqrt(drawn.numel())  # Kolmogorov-Smirnov, p below 1e-5
    assert abs(float((drawn[:, :500] * drawn[:, 501:]).mean())) < bound  # the two halves share words
    assert abs(float((drawn[1:] * drawn[:-1]).mean())) < bound
    assert torch.equal(keyed_normals(torch.arange(3), 5), keyed_normals(torch.arange(3), 5, NOISE))


def test_dropout_of_a_sample_does_not_depend_on_its_batch() -> None:
    sample_keys, values = torch.arange(6) * 977 - 3, torch.randn(6, 4, 3, 3)
    together = keyed_dropout(values, sample_keys, 0.5)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(keyed_dropout(values[order], sample_keys[order], 0.5), together[order])
    for row in range(6):
        assert torch.equal(keyed_dropout(values[row : row + 1], sample_keys[row : row + 1], 0.5), together[row : row + 1])
    assert not torch.equal(together == 0, keyed_dropout(values, sample_keys, 0.5, DROPOUT + 1) == 0)


def test_dropout_does_not_depend_on_the_memory_format() -> None:
    values, sample_keys = torch.randn(3, 8, 5, 5), torch.arange(3)
    last = values.to(memory_format=torch.channels_last)
    assert torch.equal(keyed_dropout(last, sample_keys, 0.4), keyed_dropout(values, sample_keys, 0.4))


@settings(deadline=None, max_examples=10)
@given(probability=st.sampled_from([0.1, 0.25, 0.5, 0.9]), count=st.integers(997, 1003))
def test_dropout_zeroes_the_share_asked_for_and_keeps_the_mean(probability: float, count: int) -> None:
    kept = keyed_dropout(torch.ones(400, count), torch.arange(400), probability)
    deviation = math.sqrt(probability * (1 - probability) / kept.numel())
    assert abs(float((kept == 0).double().mean()) - probability) < 6 * deviation + 2.0**-17
    assert torch.allclose(kept[kept != 0], torch.tensor(1 / (1 - probability)), rtol=2e-4)
    lanes = (kept[:, :996] == 0).double().view(400, -1, 4) - probability  # four elements share a word
    correlation = torch.einsum("nwi,nwj->ij", lanes, lanes) / (400 * 249 * probability * (1 - probability))
    assert float((correlation - torch.eye(4)).abs().max()) < 0.02
    assert float(((kept[1:] == 0).double() - probability).mul((kept[:-1] == 0).double() - probability).mean().abs()) < 6 * deviation


def test_dropout_gives_gradient_to_what_it_kept_only() -> None:
    values = torch.randn(4, 50, requires_grad=True)
    dropped = keyed_dropout(values, torch.arange(4), 0.5)
    torch.autograd.backward(dropped.sum())
    assert values.grad is not None
    assert torch.equal(values.grad, (dropped != 0) * 2.0)


def test_no_dropout_leaves_values_alone() -> None:
    values = torch.randn(2, 3)
    assert keyed_dropout(values, torch.arange(2), 0.0) is values
