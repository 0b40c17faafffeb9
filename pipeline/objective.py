"""The losses: pure functions that give one value a sample, so that the mean over a batch is exact however ranks share the batch.

Equations of section 3.2. Everything is computed in float32, under autocast too. Pictures are (n, c, H, W), masks (n, 1, H, W) or (n, H, W).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Norm = Literal["l1", "l2"]


def reconstruction(prediction: Tensor, target: Tensor, mask: Tensor, norm: Norm) -> Tensor:
    """Distance to the target over the dropped pixels: || M * (x - F((1 - M) * x)) ||, divided by the number of dropped values.

    Args:
        prediction: float (n, c, H, W).
        target: float (n, c, H, W).
        mask: bool (n, 1, H, W) or (n, H, W), True where pixels were dropped. A sample without any gives 0, with a gradient of 0.
        norm: l1, the absolute, or l2, the squared difference.

    Returns:
        float32 (n,).

    Raises:
        ValueError: shapes that don't match, or an unknown norm.
    """
    dropped = _plane(mask, prediction, "mask").expand(len(prediction), 1, *prediction.shape[2:])
    count = dropped.flatten(1).sum(1) * prediction.shape[1]
    return _weighted_sum(prediction, target, dropped, norm) / count.clamp(min=1)


def weighted_reconstruction(prediction: Tensor, target: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """Distance over all values, each times its weight, divided by the number of values: the released code's patch loss.

    The divisor does not count weights: 10 for half of the values makes the loss 5.5 times as large, not as large as before.

    Args:
        prediction: float (n, c, H, W).
        target: float (n, c, H, W).
        weight: weight of each pixel, (n, 1, H, W), (n, H, W), (H, W) or a single number; ones give the plain mean.
        norm: l1 or l2, as in `reconstruction`.

    Returns:
        float32 (n,).

    Raises:
        ValueError: as `reconstruction`.
    """
    return _weighted_sum(prediction, target, _plane(weight, prediction, "weight"), norm) / prediction[0].numel()


def discriminator(real: Tensor, generated: Tensor) -> Tensor:
    """The discriminator's loss: -log D(x) - log(1 - D(F(x))), from logits.

    Args:
        real: logits (n,) of real regions.
        generated: logits (n,) of generated regions.

    Returns:
        float32 (n,).
    """
    return functional.softplus(-real.float()) + functional.softplus(generated.float())


def generator(generated: Tensor) -> Tensor:
    """The generator's adversarial loss, non-saturating: -log D(F(x)), because generated regions are labelled real.

    Args:
        generated: logits (n,) of generated regions.

    Returns:
        float32 (n,).
    """
    return functional.softplus(-generated.float())


def joint(distance: Tensor, adversarial: Tensor, reconstruction_weight: float, adversarial_weight: float) -> Tensor:
    """The joint loss: lambda_rec * L_rec + lambda_adv * L_adv.

    Args:
        distance: reconstruction loss (n,).
        adversarial: the generator's adversarial loss (n,).
        reconstruction_weight: lambda_rec, 0.999 in the inpainting recipe.
        adversarial_weight: lambda_adv, 0.001 in the inpainting recipe.

    Returns:
        float32 (n,).
    """
    return reconstruction_weight * distance.float() + adversarial_weight * adversarial.float()


def accuracy(real: Tensor, generated: Tensor) -> dict[str, Tensor]:
    """Verdicts of the discriminator that are right: 1 or 0 a sample, float32 (n,), for real and for generated regions."""
    return {"accuracy_real": (real.detach() > 0).float(), "accuracy_generated": (generated.detach() <= 0).float()}


def _weighted_sum(prediction: Tensor, target: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """Sums the absolute or squared difference of every value, times the weight of its pixel, float32 (n,)."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target: shapes {tuple(prediction.shape)} and {tuple(target.shape)} differ")
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm: {norm!r} is neither 'l1' nor 'l2'")
    summed: Tensor = _WeightedSum.apply(prediction, target, weight, norm)  # type: ignore[no-untyped-call]
    return summed


class _WeightedSum(torch.autograd.Function):
    """The sum of weighted distances and its gradient, which keeps one picture in memory where autograd's own needs four."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, weight: Tensor, norm: Norm) -> Tensor:
        difference = prediction.float() - target.float()
        ctx.norm, ctx.dtype = norm, prediction.dtype
        ctx.save_for_backward(difference, weight)
        distance = difference.abs() if norm == "l1" else torch.square(difference)
        return distance.mul_(weight).flatten(1).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        difference, weight = ctx.saved_tensors
        slope = torch.sign(difference) if ctx.norm == "l1" else 2 * difference
        return slope.mul_(weight * gradient[:, None, None, None]).to(ctx.dtype), None, None, None


def _plane(values: Tensor, picture: Tensor, name: str) -> Tensor:
    """Reshapes one number a pixel to float32 that broadcasts to the picture (n, c, H, W)."""
    plane = values.unsqueeze(1) if values.ndim == 3 else values
    count, _, height, width = picture.shape
    if plane.ndim and (
        plane.shape[-2:] != (height, width) or (plane.ndim == 4 and (plane.shape[0] not in (1, count) or plane.shape[1] != 1))
    ):
        raise ValueError(f"{name}: shape {tuple(values.shape)} is not one number a pixel of pictures of shape {tuple(picture.shape)}")
    return plane.float()
