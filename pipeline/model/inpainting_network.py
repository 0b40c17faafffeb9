"""The generator of the inpainting recipe (section 5.1, and the authors' released code)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.batch_norm import GroupedBatchNorm2d
from pipeline.model.initialisation import adversarial_start
from pipeline.model.sample_random import NOISE, keyed_normals
from pipeline.model.whole_convolution import WholeConv2d, WholeConvTranspose2d

SIZES = (32, 64, 128)


def stage_maps(size: int, width: int) -> list[int]:
    """Maps after each halving of `size` pixels down to 4x4: width times 1, 2, 4, 8.

    128 pixels have a second stage of `width` maps, as the released code; 32 pixels, which it does not paint, lack the last stage.
    """
    return {32: [width], 64: [width], 128: [width, width]}[size] + [2 * width, 4 * width] + [8 * width] * (size > SIZES[0])


def encoder_stages(maps: list[int], group: int, before: int = 3, first: int = 1) -> nn.Sequential:
    """Makes 4x4 convolutions of stride 2, each with batch norm and LeakyReLU, that end in maps of 4x4.

    Args:
        maps: maps of each stage.
        group: samples that are normalised together.
        before: maps of the input.
        first: number of the first stage; stage 1 has no batch norm.
    """
    stages = nn.Sequential()
    for number, each in enumerate(maps, start=first):
        stages.add_module(f"conv{number}", nn.Conv2d(before, each, 4, 2, 1, bias=False))
        if number > 1:
            stages.add_module(f"bn{number}", GroupedBatchNorm2d(each, group))
        stages.add_module(f"relu{number}", nn.LeakyReLU(0.2, inplace=True))
        before = each
    return stages


class Generator(nn.Module):
    """Paints the dropped region, or the whole image, of 128x128 or 64x64 pixels in [-1, 1].

    Central region: 128 or 64 in, half of the side out. Random region: 128 or 64 in, the same out. Convolutions have no biases, because the
    released code sets biases to zero before every step.

    Args:
        input_size: side of the context, 32, 64 or 128.
        output_size: side of the painted region, 32, 64 or 128.
        n_bottleneck: values between encoder and decoder.
        width: maps of the first stage; 64 is published, smaller numbers are for tests.
        noise: normal numbers that are drawn for each sample and join the bottleneck through a 1x1 convolution; 0 draws none (which the
            paper found better).
        batch_norm_group: samples that are normalised together.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        input_size: int = 128,
        output_size: int = 64,
        n_bottleneck: int = 4000,
        width: int = 64,
        noise: int = 0,
        batch_norm_group: int = 64,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("output_size", output_size)):
            if size not in SIZES:
                raise ValueError(f"{name}: {size} is none of {', '.join(map(str, SIZES))}")
        if noise < 0:
            raise ValueError(f"noise: {noise} numbers can't be drawn")
        self.n_noise = noise
        down, up_maps = stage_maps(input_size, width), stage_maps(output_size, width)
        self.encoder = encoder_stages(down, batch_norm_group)
        self.to_bottleneck = WholeConv2d(down[-1], n_bottleneck, 4)
        self.noise = nn.Conv2d(noise, noise, 1, bias=False) if noise else None
        joined = n_bottleneck + noise
        self.bottleneck = nn.Sequential(GroupedBatchNorm2d(joined, batch_norm_group), nn.LeakyReLU(0.2, inplace=True))
        self.decoder = nn.Sequential()
        before = joined
        for number, each in enumerate(reversed(up_maps), start=1):
            up: nn.Module = WholeConvTranspose2d(before, each, 4) if number == 1 else nn.ConvTranspose2d(before, each, 4, 2, 1, bias=False)
            self.decoder.add_module(f"up{number}", up)
            self.decoder.add_module(f"bn{number}", GroupedBatchNorm2d(each, batch_norm_group))
            self.decoder.add_module(f"relu{number}", nn.ReLU(inplace=True))
            before = each
        self.decoder.add_module("image", nn.ConvTranspose2d(before, 3, 4, 2, 1, bias=False))
        self.decoder.add_module("tanh", nn.Tanh())
        adversarial_start(self)

    def forward(self, context: Tensor, keys: Tensor) -> Tensor:
        """Paints the region.

        Args:
            context: float (n, 3, input_size, input_size), dropped pixels filled.
            keys: int64 (n,), random keys that noise is drawn from; not used without noise.

        Returns:
            float (n, 3, output_size, output_size) in [-1, 1].
        """
        code = self.to_bottleneck(self.encoder(context))
        if self.noise is not None:
            drawn = keyed_normals(keys, self.n_noise, NOISE).to(code.dtype)[:, :, None, None]
            code = torch.cat([code, self.noise(drawn)], dim=1)
        painted: Tensor = self.decoder(self.bottleneck(code))
        return painted
