"""Losses and their gradients are the formulas of the paper, sample by sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import objective


def pictures(count: int = 4, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    prediction = torch.randn(count, 3, size, size, generator=generator).requires_grad_()
    mask = torch.rand(count, 1, size, size, generator=generator) < torch.tensor([0.1, 0.3, 0.6, 0.9]).view(-1, 1, 1, 1)
    return prediction, torch.randn(count, 3, size, size, generator=generator), mask


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_reconstruction_is_the_mean_error_of_the_dropped_values(norm: Any) -> None:
    prediction, target, mask = pictures()
    loss = objective.reconstruction(prediction, target, mask, norm)
    torch.autograd.backward(loss.sum())
    difference = (prediction - target).detach()
    for row in range(4):
        dropped = mask[row].expand(3, 6, 6)
        values = difference[row][dropped]
        assert float(loss[row].detach()) == pytest.approx(float((values.abs() if norm == "l1" else values**2).mean()), rel=1e-5)
        gradient = torch.zeros(3, 6, 6)
        gradient[dropped] = (values.sign() if norm == "l1" else 2 * values) / len(values)
        assert prediction.grad is not None
        assert torch.allclose(prediction.grad[row], gradient, atol=1e-7)


def test_reconstruction_does_not_depend_on_the_area_of_the_mask() -> None:
    target, mask = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[0, :, :2, :2], mask[1, :, :6, :6] = True, True
    assert objective.reconstruction(target + 3, target, mask, "l2").tolist() == [9, 9]


def test_masks_may_have_a_dimension_of_maps_or_not() -> None:
    prediction, target, mask = pictures()
    assert torch.equal(
        objective.reconstruction(prediction, target, mask, "l2"), objective.reconstruction(prediction, target, mask[:, 0], "l2")
    )


def test_a_sample_of_which_nothing_is_dropped_gives_zero_and_no_gradient() -> None:
    prediction, target, mask = pictures()
    mask[1] = False
    loss = objective.reconstruction(prediction, target, mask, "l2")
    torch.autograd.backward(loss.sum())
    assert float(loss[1].detach()) == 0
    assert prediction.grad is not None
    assert not prediction.grad[1].any()
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad[0].any()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_weight_of_one_gives_the_mean_over_the_whole_picture(norm: Any) -> None:
    prediction, target, _ = pictures()
    loss = objective.weighted_reconstruction(prediction, target, torch.ones(()), norm)
    difference = (prediction - target).detach()
    expected = (difference.abs() if norm == "l1" else difference**2).mean(dim=(1, 2, 3))
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_the_overlap_weighs_ten_times_in_the_gradient_over_an_unchanged_divisor() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 64, 64, generator=generator).requires_grad_(), torch.randn(2, 3, 64, 64, generator=generator)
    weight = torch.full((64, 64), 10.0)
    weight[4:60, 4:60] = 1  # the hole
    torch.autograd.backward(objective.weighted_reconstruction(prediction, target, weight, "l2").sum())
    expected = 2 * (prediction - target).detach() * weight / (3 * 64 * 64)
    assert prediction.grad is not None
    assert torch.allclose(prediction.grad, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 6), (4, 6, 6), (4, 1, 6, 6), (1, 1, 6, 6)])
def test_weights_of_a_pixel_may_have_any_of_the_shapes_of_a_mask(shape: tuple[int, ...]) -> None:
    prediction, target, _ = pictures()
    weight = torch.rand(shape)
    full = weight.reshape(-1, 1, 6, 6).expand(4, 3, 6, 6)
    expected = ((prediction - target) ** 2 * full).mean(dim=(1, 2, 3))
    assert torch.allclose(objective.weighted_reconstruction(prediction, target, weight, "l2"), expected, rtol=1e-5)


def test_adversarial_losses_are_the_logarithms_of_the_paper() -> None:
    real, generated = torch.linspace(-4, 4, 9, requires_grad=True), torch.linspace(3, -5, 9, requires_grad=True)
    loss = objective.discriminator(real, generated)
    probability_real, probability_generated = torch.sigmoid(real).detach(), torch.sigmoid(generated).detach()
    assert torch.allclose(loss, -torch.log(probability_real) - torch.log(1 - probability_generated), rtol=1e-5)
    gradient_real, gradient_generated = torch.autograd.grad(loss.sum(), [real, generated])
    assert torch.allclose(gradient_real, probability_real - 1, atol=1e-6)
    assert torch.allclose(gradient_generated, probability_generated, atol=1e-6)
    painter = objective.generator(generated)
    assert torch.allclose(painter, -torch.log(probability_generated), rtol=1e-5)
    (gradient,) = torch.autograd.grad(painter.sum(), [generated])
    assert torch.allclose(gradient, probability_generated - 1, atol=1e-6)  # does not saturate where D is sure


def test_adversarial_losses_stay_finite_where_probabilities_round_to_0_and_1() -> None:
    sure = torch.tensor([-1e4, -200.0, 200.0, 1e4], requires_grad=True)
    for loss in (objective.discriminator(sure, sure), objective.generator(sure)):
        (gradient,) = torch.autograd.grad(loss.sum(), [sure])
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
    assert objective.generator(sure)[0] == 1e4


def test_joint_is_the_weighted_sum() -> None:
    distance, adversarial = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    assert torch.allclose(objective.joint(distance, adversarial, 0.999, 0.001), torch.tensor([0.999 + 0.003, 1.998 + 0.005]))


def test_accuracy_counts_the_right_verdicts() -> None:
    found = objective.accuracy(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-1.0, -2.0, 3.0]))
    assert found["accuracy_real"].tolist() == [1, 0, 1]
    assert found["accuracy_generated"].tolist() == [1, 1, 0]


def test_everything_is_float32_under_bfloat16() -> None:
    prediction, target, mask = pictures()
    low, target, logits = prediction.detach().bfloat16(), target.bfloat16(), torch.randn(4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        losses = {
            "reconstruction": objective.reconstruction(low, target, mask, "l2"),
            "weighted": objective.weighted_reconstruction(low, target, torch.rand(6, 6), "l1"),
            "discriminator": objective.discriminator(logits, logits),
            "generator": objective.generator(logits),
        }
        losses["joint"] = objective.joint(losses["reconstruction"], losses["generator"], 0.9, 0.1)
    assert {name: loss.dtype for name, loss in losses.items()} == dict.fromkeys(losses, torch.float32)
    exact = objective.reconstruction(low.float(), target.float(), mask, "l2")
    assert torch.equal(losses["reconstruction"], exact)
    assert torch.equal(losses["discriminator"], objective.discriminator(logits.float(), logits.float()))


def test_shapes_and_norms_that_do_not_belong_together_are_refused() -> None:
    prediction, target, mask = pictures()
    with pytest.raises(ValueError, match=r"^prediction and target: shapes \(4, 3, 6, 6\) and \(4, 3, 6, 5\) differ"):
        objective.reconstruction(prediction, target[..., :5], mask, "l2")
    for wrong in (mask[..., :5], mask[:3], mask.expand(4, 3, 6, 6), mask.transpose(0, 1)):
        with pytest.raises(ValueError, match=r"^mask: shape"):
            objective.reconstruction(prediction, target, wrong, "l2")
    with pytest.raises(ValueError, match=r"^weight: shape \(5, 5\)"):
        objective.weighted_reconstruction(prediction, target, torch.ones(5, 5), "l2")
    with pytest.raises(ValueError, match=r"^norm: 'l3'"):
        objective.reconstruction(prediction, target, mask, "l3")  # type: ignore[arg-type]
