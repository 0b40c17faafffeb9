"""The discriminator of the inpainting recipe (section 3.2.2 and the released code): is a region real or painted?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.initialisation import adversarial_start
from pipeline.model.inpainting_network import SIZES, encoder_stages, stage_maps
from pipeline.model.whole_convolution import WholeConv2d


class Discriminator(nn.Module):
    """Judges regions of 32x32, 64x64 or 128x128 pixels in [-1, 1], without mask, and without context unless that is asked for.

    Beside a context (the released code's conditionAdv), the first stage is two 5x5 convolutions of stride 2, one of the context and one of
    the region, which is padded to the context's size; their maps are joined. All other stages are those of a region of that size.

    Args:
        size: side of the regions, 32, 64 or 128.
        width: maps of the first stage; 64 is published, smaller numbers are for tests.
        batch_norm_group: samples that are normalised together.
        context_size: side of the context that each region is judged with, not smaller than the region; None judges the region alone.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(self, size: int = 64, width: int = 64, batch_norm_group: int = 64, context_size: int | None = None) -> None:
        super().__init__()
        for name, side in (("size", size), ("context_size", context_size or size)):
            if side not in SIZES:
                raise ValueError(f"{name}: {side} is none of {', '.join(map(str, SIZES))}")
        self.group = batch_norm_group
        maps = stage_maps(context_size or size, width)
        if context_size is None:
            self.stages = encoder_stages(maps, batch_norm_group)
        else:
            if context_size < size:
                raise ValueError(f"context_size: {context_size} is less than the {size} of the regions")
            self.context = nn.Conv2d(3, width, 5, 2, 2, bias=False)
            self.region = nn.Conv2d(3, width, 5, 2, 2 + (context_size - size) // 2, bias=False)
            self.joined = nn.LeakyReLU(0.2, inplace=True)
            self.stages = encoder_stages(maps[1:], batch_norm_group, before=2 * width, first=2)
        self.verdict = WholeConv2d(maps[-1], 1, 4)
        adversarial_start(self)

    def forward(self, *regions: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Judges batches of regions. Real and painted regions don't share batch-norm statistics.

        Args:
            regions: batches of float (n, 3, size, size), all of one size.
            context: float (n, 3, context_size, context_size), if the discriminator was made for one.

        Returns:
            For each batch float (n,), the logits of being real.
        """
        inputs = regions
        if context is not None:
            seen = self.context(context)
            inputs = tuple(self.joined(torch.cat([seen, self.region(each)], dim=1)) for each in regions)
        if self.training and not (self.group and len(regions[0]) % self.group == 0):
            return tuple(self._judge(each) for each in inputs)  # otherwise the batches would be one group of batch norm
        return self._judge(torch.cat(inputs)).chunk(len(inputs)) if len(inputs) > 1 else (self._judge(inputs[0]),)

    def _judge(self, inputs: Tensor) -> Tensor:
        verdict: Tensor = self.verdict(self.stages(inputs))
        return verdict.flatten()
