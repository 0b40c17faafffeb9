"""The decoder of the features recipe: five up-convolutions (section 3.1), then a resize to the predicted resolution."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d
from pipeline.model.initialisation import gaussian_start, scale_start
from shards.counting import counted

MAPS = (128, 64, 64, 32, 3)


class BilinearResize(nn.Module):
    """Resizes square maps bilinearly, pixel centres at half integers, in float32.

    The resize is two matrix products, because these give the same bits every time; the backward pass of `F.interpolate` on a GPU adds in
    any order. There is no antialiasing: if the side shrinks to less than half, some pixels are skipped.

    Args:
        source: side of the input.
        target: side of the output.
    """

    matrix: Tensor

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        place = ((torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5).clamp(min=0)
        before, row = place.floor().long(), torch.arange(target)
        matrix = torch.zeros(target, source, dtype=torch.float64)
        matrix[row, before] = 1 - (place - before)
        matrix[row, (before + 1).clamp(max=source - 1)] += place - before
        self.register_buffer("matrix", matrix.float(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Resizes float (n, C, source, source) to float32 (n, C, target, target)."""
        with torch.autocast(maps.device.type, enabled=False):
            planes = maps.float().flatten(0, 1)
            # a product for each plane: one of all rows, as @ makes it, takes twice as long on CPUs
            rows = torch.bmm(self.matrix.expand(len(planes), -1, -1), planes)
            resized = torch.bmm(rows, self.matrix.T.expand(len(planes), -1, -1))
            return resized.view(*maps.shape[:2], *resized.shape[1:])


class Decoder(nn.Sequential):
    """Turns 6x6 maps into an image by five 5x5 up-convolutions of stride 2.

    They give 128 maps of 11x11, 64 of 21x21, 64 of 41x41, 32 of 81x81 and 3 of 161x161. ReLU follows each but the last, because the
    targets are mean-centred. Sizes and maps are a guess: the paper says only that there are five up-convolutions with ReLU.

    Args:
        channels: maps of the input.
        target_size: side of the prediction in pixels; 161 needs no resize.
        batch_norm: normalise after every up-convolution but the last, in place of its bias.
        batch_norm_group: samples that are normalised together.
        initial_std: standard deviation of the initial weights; None scales with the fan-in.
        proportion: factor of the maps, as in the encoder; the picture keeps its 3 channels.
        output_gain: factor of the initial weights of the last up-convolution.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        channels: int = 256,
        target_size: int = 227,
        batch_norm: bool = False,
        batch_norm_group: int = 64,
        initial_std: float | None = None,
        proportion: Fraction = Fraction(1),
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if target_size < 1:
            raise ValueError(f"target_size: {counted(target_size, 'pixel')} can't be predicted")
        size, before = 6, channels
        for number, published in enumerate(MAPS, start=1):
            last = number == len(MAPS)
            maps = published if last else int(published * proportion)
            self.add_module(f"up{number}", nn.ConvTranspose2d(before, maps, 5, 2, 2, bias=last or not batch_norm))
            if not last and batch_norm:
                self.add_module(f"bn{number}", GroupedBatchNorm2d(maps, batch_norm_group))
            if not last:
                self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            size, before = 2 * size - 1, maps
        if target_size != size:
            self.add_module("resize", BilinearResize(size, target_size))
        gaussian_start(self, initial_std)
        scale_start(self.get_submodule(f"up{len(MAPS)}"), output_gain)
