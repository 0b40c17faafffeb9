"""Random weights of LPIPS with AlexNet."""

from __future__ import annotations

import torch

CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Maps, input maps and side of the kernel of each convolution, by its number."""


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state as `lpips.LPIPS(net="alex")` has it, with random weights; it names the linear layers twice, and more that is not needed."""
    random = torch.Generator().manual_seed(seed)
    found = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for layer, (number, (maps, inputs, kernel)) in enumerate(CONVOLUTIONS.items()):
        found[f"net.slice{layer + 1}.{number}.weight"] = torch.randn(maps, inputs, kernel, kernel, generator=random) / inputs**0.5 / kernel
        found[f"net.slice{layer + 1}.{number}.bias"] = 0.1 * torch.randn(maps, generator=random)
        found[f"lin{layer}.model.1.weight"] = found[f"lins.{layer}.model.1.weight"] = torch.rand(1, maps, 1, 1, generator=random)
    return found
