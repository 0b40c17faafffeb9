"""The networks, losses and training steps of the recipes `features` and `inpainting`, transcribed from the paper as a textbook would.

It is what `benchmarks.step` compares with, and a second source of the mathematics: it imports nothing of the pipeline. Everything is plain
torch in float32 and contiguous NCHW: `nn.LocalResponseNorm`, `nn.BatchNorm2d` over the whole batch, `F.interpolate`, `torch.optim.Adam`
with torch's defaults, the loop of the DCGAN tutorial, `.item()` on every loss in every step. Numbers are those of launch/configs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Textbook(Protocol):
    """A recipe's networks with their training step.

    Attributes:
        networks: the networks by the players' names, in the order of their turns.
    """

    networks: dict[str, nn.Module]

    def step(self, images: Tensor, masks: Tensor, kept: Tensor | None) -> dict[str, float]:
        """Takes one training step.

        Args:
            images: uint8 (n, H, W, 3) on the CPU.
            masks: bool (n, H, W) on the CPU, True where pixels are dropped.
            kept: values that dropout keeps, float32 (n, C, 6, 6) of 0 and 1; None draws them by `nn.Dropout`.

        Returns:
            The losses by `player/part`.
        """
        ...


class ChannelwiseFullyConnected(nn.Module):
    """A fully-connected layer for each map.

    Args:
        channels: number of maps.
        places: pixels of a map.
    """

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, places, places) * places**-0.5)
        self.bias = nn.Parameter(torch.zeros(channels, 1, places))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps float (n, channels, H, W) to the same shape."""
        joined = torch.einsum("ncp,cpq->ncq", maps.flatten(2), self.weight) + self.bias[:, 0]
        return joined.view_as(maps)


class ContextEncoder(nn.Module):
    """The network of section 5.2: CaffeNet up to pool5, channel-wise fully-connected layer, five up-convolutions, resize to 227.

    Args:
        width: maps of the first convolution; 96 is published.
    """

    def __init__(self, width: int = 96) -> None:
        super().__init__()

        def scaled(maps: int) -> int:
            return maps * width // 96

        self.encoder = nn.Sequential(
            nn.Conv2d(3, scaled(96), 11, stride=4),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.LocalResponseNorm(5, 1e-4, 0.75),
            nn.Conv2d(scaled(96), scaled(256), 5, padding=2, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.LocalResponseNorm(5, 1e-4, 0.75),
            nn.Conv2d(scaled(256), scaled(384), 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(scaled(384), scaled(384), 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(scaled(384), scaled(256), 3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.channelwise = ChannelwiseFullyConnected(scaled(256), 36)
        self.dropout = nn.Dropout(0.5)
        self.mixing = nn.Conv2d(scaled(256), scaled(256), 1)
        maps = [scaled(256), scaled(128), scaled(64), scaled(64), scaled(32)]
        self.decoder = nn.Sequential()
        for before, after in pairwise(maps):
            self.decoder.extend([nn.ConvTranspose2d(before, after, 5, stride=2, padding=2), nn.ReLU()])
        self.decoder.append(nn.ConvTranspose2d(maps[-1], 3, 5, stride=2, padding=2))

    def forward(self, context: Tensor, kept: Tensor | None = None) -> Tensor:
        """Paints float (n, 3, 227, 227) from the same; `kept` as in `Textbook.step`."""
        code = F.relu(self.channelwise(self.encoder(context)))
        code = self.dropout(code) if kept is None else code * kept * 2
        painting = self.decoder(F.relu(self.mixing(code)))
        return F.interpolate(painting, size=(227, 227), mode="bilinear", align_corners=False)


class Features:
    """The features recipe: L1 over the dropped pixels, Adam at 1e-3 with a warm-up of 100 steps, gradients clipped to a norm of 1.

    Args:
        device: device of the network.
        width: maps of the first convolution.
    """

    def __init__(self, device: torch.device, width: int = 96) -> None:
        self.device = device
        self.network = ContextEncoder(width).to(device)
        self.networks: dict[str, nn.Module] = {"context_encoder": self.network}
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: min(1.0, (step + 1) / 100))
        self.mean = torch.tensor([123.0, 117.0, 104.0], device=device).view(1, 3, 1, 1)

    def step(self, images: Tensor, masks: Tensor, kept: Tensor | None = None) -> dict[str, float]:
        """Takes one training step; see `Textbook`."""
        target = (images.to(self.device).permute(0, 3, 1, 2).contiguous().float() - self.mean) / 128
        mask = masks.to(self.device).unsqueeze(1)
        context = target.masked_fill(mask, 0.0)

        self.optimiser.zero_grad()
        painting = self.network(context, kept)
        loss = (((painting - target).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return {"context_encoder/total": loss.item()}


def _halving(maps: Sequence[int]) -> list[nn.Module]:
    """Convolutions of stride 2 from 3 maps to the given ones, with batch norm after each but the first."""
    layers: list[nn.Module] = [nn.Conv2d(3, maps[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for before, after in pairwise(maps):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True)]
    return layers


def generator(width: int = 64, bottleneck: int = 4000) -> nn.Sequential:
    """The generator of section 5.1 and of the released code: float (n, 3, 128, 128) to (n, 3, 64, 64) in [-1, 1].

    Args:
        width: maps of the first stage; 64 is published.
        bottleneck: values between encoder and decoder.
    """
    layers = _halving([width, width, 2 * width, 4 * width, 8 * width])
    layers += [nn.Conv2d(8 * width, bottleneck, 4, bias=False), nn.BatchNorm2d(bottleneck), nn.LeakyReLU(0.2, inplace=True)]
    layers += [nn.ConvTranspose2d(bottleneck, 8 * width, 4, bias=False), nn.BatchNorm2d(8 * width), nn.ReLU(inplace=True)]
    for before in (8 * width, 4 * width, 2 * width):
        layers += [nn.ConvTranspose2d(before, before // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(before // 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(width: int = 64) -> nn.Sequential:
    """The discriminator of section 5.1 and of the released code: float (n, 3, 64, 64) to logits (n,) of being real.

    Args:
        width: maps of the first stage; 64 is published.
    """
    stages = _halving([width, 2 * width, 4 * width, 8 * width])
    return nn.Sequential(*stages, nn.Conv2d(8 * width, 1, 4, bias=False), nn.Flatten(0))


class Inpainting:
    """The inpainting recipe: joint loss, a squared error that weighs ten times where the prediction overlaps the context by 4 pixels.

    The turns are those of the DCGAN tutorial: one painting serves both, the discriminator's turn comes first, and the discriminator is not
    frozen in the generator's.

    Args:
        device: device of the networks.
        width: maps of the first stages.
        bottleneck: values between encoder and decoder.
    """

    def __init__(self, device: torch.device, width: int = 64, bottleneck: int = 4000) -> None:
        self.device = device
        self.generator = generator(width, bottleneck).to(device)
        self.discriminator = discriminator(width).to(device)
        self.networks: dict[str, nn.Module] = {"discriminator": self.discriminator, "generator": self.generator}
        self.generator_optimiser = torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
        self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.criterion = nn.BCEWithLogitsLoss()
        self.fill = torch.tensor([117.0, 104.0, 123.0], device=device).view(1, 3, 1, 1) / 127.5 - 1
        self.weight = torch.full((64, 64), 10.0, device=device)
        self.weight[4:60, 4:60] = 1.0

    def step(self, images: Tensor, masks: Tensor, kept: Tensor | None = None) -> dict[str, float]:  # noqa: ARG002 - there is no dropout
        """Takes one training step; see `Textbook`."""
        pictures = images.to(self.device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        context = torch.where(masks.to(self.device).unsqueeze(1), self.fill, pictures)
        real = pictures[:, :, 32:96, 32:96].contiguous()
        ones, zeros = torch.ones(len(images), device=self.device), torch.zeros(len(images), device=self.device)

        self.discriminator.zero_grad()
        loss_real = self.criterion(self.discriminator(real), ones)
        loss_real.backward()
        fake = self.generator(context)
        loss_fake = self.criterion(self.discriminator(fake.detach()), zeros)
        loss_fake.backward()
        self.discriminator_optimiser.step()

        self.generator.zero_grad()
        adversarial = self.criterion(self.discriminator(fake), ones)
        joint = 0.999 * (self.weight * (fake - real) ** 2).mean() + 0.001 * adversarial
        joint.backward()
        self.generator_optimiser.step()
        return {
            "discriminator/total": loss_real.item() + loss_fake.item(),
            "generator/total": joint.item(),
            "generator/reconstruction": F.mse_loss(fake.detach(), real).item(),
            "generator/adversarial": adversarial.item(),
        }


TEXTBOOK: dict[str, type[Features | Inpainting]] = {"features": Features, "inpainting": Inpainting}
"""The transcriptions by the recipes' names."""


@torch.no_grad()
def copy_weights(textbook: Textbook, weights: dict[str, list[Tensor]]) -> None:
    """Copies weights into the networks.

    Args:
        textbook: recipe whose networks are filled.
        weights: the parameters of each player in the order of its network, float32.

    Raises:
        ValueError: the shapes are not those of the networks.
    """
    for name, network in textbook.networks.items():
        own = list(network.parameters())
        if [each.shape for each in own] != [each.shape for each in weights[name]]:
            raise ValueError(f"{name}: the weights are not of the transcribed network")
        for parameter, value in zip(own, weights[name], strict=True):
            parameter.copy_(value)
