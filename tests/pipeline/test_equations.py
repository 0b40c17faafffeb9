"""Each equation of the objective is the paper's: values against float64 loops, gradients against finite differences of those loops."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import exp, log

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import objective
from tests.finite_differences import Numbers, differences

COUNT, CHANNELS, HEIGHT, WIDTH = 3, 3, 3, 4
Equation = Callable[[Numbers], list[float]]


def distance(predicted: float, real: float, norm: str) -> float:
    return abs(predicted - real) if norm == "l1" else (predicted - real) ** 2


def reconstruction(prediction: Numbers, target: Numbers, mask: NDArray[np.bool_], norm: str) -> list[float]:
    """|| M * (x - F((1 - M) * x)) ||, over the dropped values; a picture of which nothing is dropped loses nothing."""
    losses = []
    for picture in range(len(prediction)):
        total, dropped = 0.0, 0
        for channel, row, column in np.ndindex(prediction.shape[1:]):
            if mask[picture, row, column]:
                total += distance(prediction[picture, channel, row, column], target[picture, channel, row, column], norm)
                dropped += 1
        losses.append(total / dropped if dropped else 0.0)
    return losses


def weighted(prediction: Numbers, target: Numbers, weight: Numbers, norm: str) -> list[float]:
    """The patch loss of the released code: weighted differences over the number of values, whatever the weights add up to."""
    losses = []
    for picture in range(len(prediction)):
        total = 0.0
        for channel, row, column in np.ndindex(prediction.shape[1:]):
            difference = distance(prediction[picture, channel, row, column], target[picture, channel, row, column], norm)
            total += weight[picture, row, column] * difference
        losses.append(total / (CHANNELS * HEIGHT * WIDTH))
    return losses


def verdict(logit: float) -> float:
    """D(x), the probability of being real."""
    return 1 / (1 + exp(-logit))


def checked(found: Callable[[torch.Tensor], torch.Tensor], equation: Equation, at: Numbers) -> None:
    """Asserts that the loss is the equation, and its gradient for differently weighted samples the equation's slope."""
    point = torch.tensor(at, dtype=torch.float32, requires_grad=True)
    losses = found(point)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(equation(at), rel=2e-5, abs=1e-7)
    shares = np.linspace(0.5, 2, len(losses))
    (gradient,) = torch.autograd.grad((losses * torch.tensor(shares)).sum(), point)
    slopes = differences(lambda moved: float(np.dot(shares, equation(moved))), at)
    assert np.allclose(gradient.numpy(), slopes, rtol=1e-4, atol=1e-6)


@pytest.fixture
def numbers(draw: random.Random) -> np.random.Generator:
    return np.random.default_rng(draw.getrandbits(32))


@pytest.fixture
def pair(numbers: np.random.Generator) -> tuple[Numbers, Numbers]:
    """A target, and a prediction that is nowhere so near to it that a step of the differences crosses the bend of L1."""
    target = numbers.normal(size=(COUNT, CHANNELS, HEIGHT, WIDTH))
    offset = numbers.uniform(0.1, 2, target.shape) * numbers.choice([-1.0, 1.0], target.shape)
    return (target + offset).astype(np.float32).astype(np.float64), target.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_reconstruction_loss(pair: tuple[Numbers, Numbers], numbers: np.random.Generator, norm: objective.Norm) -> None:
    prediction, target = pair
    mask = numbers.random((COUNT, HEIGHT, WIDTH)) < 0.4
    mask[0, 0, 0], mask[-1] = True, False  # of the last picture nothing is dropped
    real, dropped = torch.tensor(target, dtype=torch.float32), torch.tensor(mask)
    checked(
        lambda moved: objective.reconstruction(moved, real, dropped, norm),
        lambda moved: reconstruction(moved, target, mask, norm),
        prediction,
    )


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_weighted_reconstruction_loss(pair: tuple[Numbers, Numbers], numbers: np.random.Generator, norm: objective.Norm) -> None:
    prediction, target = pair
    weight = numbers.choice([1.0, 10.0], (COUNT, HEIGHT, WIDTH))
    real, weights = torch.tensor(target, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32)
    checked(
        lambda moved: objective.weighted_reconstruction(moved, real, weights, norm),
        lambda moved: weighted(moved, target, weight, norm),
        prediction,
    )


def test_the_discriminators_loss(numbers: np.random.Generator) -> None:
    """-(log D(x) + log(1 - D(F((1 - M) * x)))), which max_D of the adversarial loss minimises."""
    checked(
        lambda moved: objective.discriminator(moved[0], moved[1]),
        lambda moved: [-(log(verdict(real)) + log(1 - verdict(painted))) for real, painted in zip(moved[0], moved[1], strict=True)],
        numbers.normal(0, 3, (2, 5)).astype(np.float32).astype(np.float64),
    )


def test_the_generators_loss(numbers: np.random.Generator) -> None:
    """-log D(F((1 - M) * x)): what is painted is labelled real, so that the gradient does not vanish where D is sure."""
    checked(
        objective.generator,
        lambda moved: [-log(verdict(painted)) for painted in moved],
        numbers.normal(0, 3, 5).astype(np.float32).astype(np.float64),
    )


@pytest.mark.parametrize("weights", [(0.999, 0.001), (0.0, 1.0), (10.0, 1.0), (1.0, 0.0)])
def test_the_joint_loss(numbers: np.random.Generator, weights: tuple[float, float]) -> None:
    checked(
        lambda moved: objective.joint(moved[0], moved[1], *weights),
        lambda moved: [weights[0] * rec + weights[1] * adv for rec, adv in zip(moved[0], moved[1], strict=True)],
        numbers.uniform(0, 3, (2, 5)).astype(np.float32).astype(np.float64),
    )
