"""The discriminator of the inpainting recipe (section 3.2.2 and the released code): is a region real or painted?"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.model.initialisation import adversarial_start
from pipeline.model.inpainting_network import SIZES, encoder_stages, stage_maps


class Discriminator(nn.Module):
    """Judges regions of 32x32, 64x64 or 128x128 pixels in [-1, 1], without context or mask.

    Args:
        size: side of the regions, 32, 64 or 128.
        width: maps of the first stage; 64 is published, smaller numbers are for tests.
        batch_norm_group: samples that are normalised together.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(self, size: int = 64, width: int = 64, batch_norm_group: int = 64) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size: {size} is none of {', '.join(map(str, SIZES))}")
        maps = stage_maps(size, width)
        self.stages = encoder_stages(maps, batch_norm_group)
        self.verdict = nn.Conv2d(maps[-1], 1, 4, bias=False)
        adversarial_start(self)

    def forward(self, *regions: Tensor) -> tuple[Tensor, ...]:
        """Judges batches of regions, each in its own pass, so that real and painted regions don't share batch-norm statistics.

        Args:
            regions: batches of float (n, 3, size, size).

        Returns:
            For each batch float (n,), the logits of being real.
        """
        return tuple(self.verdict(self.stages(each)).flatten() for each in regions)
