"""The published network of the features recipe (section 5.2): AlexNet's encoder, channel-wise bottleneck, five up-convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.model.channelwise import Bottleneck
from pipeline.model.decoder import Decoder
from pipeline.model.encoder import Encoder, Layout, Pooling, encode
from pipeline.model.initialisation import gaussian_start

INPUT_SIZE = 227


class FeaturesNetwork(nn.Module):
    """Predicts an image from its context.

    Args:
        layout: layout of the encoder, caffenet or torchvision.
        batch_norm: batch normalisation in encoder and decoder.
        batch_norm_group: samples that are normalised together.
        pooling: max, or strided for the pool-free variant.
        mixing_kernel: side of the convolution after the channel-wise layer, odd.
        dropout: probability that a value of the channel-wise layer is set to zero in training.
        target_size: side of the prediction in pixels.
        initial_std: standard deviation of the initial weights; None scales with the fan-in.
        width: maps of the first convolution, all others in proportion; None is the published network.
        output_gain: factor of the initial weights of the last up-convolution.

    Attributes:
        encoder: part that is kept after pretraining.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        layout: Layout = "caffenet",
        batch_norm: bool = False,
        batch_norm_group: int = 64,
        pooling: Pooling = "max",
        mixing_kernel: int = 1,
        dropout: float = 0.5,
        target_size: int = INPUT_SIZE,
        initial_std: float | None = None,
        width: int | None = None,
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(layout, batch_norm, batch_norm_group, pooling, initial_std, width)
        self.bottleneck = Bottleneck(self.encoder.channels, 6, mixing_kernel, dropout)
        gaussian_start(self.bottleneck, initial_std)
        scale = self.encoder.proportion
        self.decoder = Decoder(self.encoder.channels, target_size, batch_norm, batch_norm_group, initial_std, scale, output_gain)

    def forward(self, context: Tensor, keys: Tensor) -> Tensor:
        """Paints the image.

        Args:
            context: float (n, 3, 227, 227), dropped pixels filled.
            keys: int64 (n,), random keys that dropout is drawn from.

        Returns:
            float (n, 3, target_size, target_size).
        """
        painted: Tensor = self.decoder(self.bottleneck(encode(self.encoder, context), keys))
        return painted
