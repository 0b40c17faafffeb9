"""The networks (sections 3.1 and 5), all float32, contiguous NCHW or channels_last.

In: context images, float (n, 3, H, W), and one random key a sample, int64 (n,), from which dropout and noise are drawn. Out: the predicted
pixels, or logits. Random numbers and batch statistics depend neither on the number of ranks nor on the micro-batch.

Public names: `FeaturesNetwork` with its parts `Encoder`, `Bottleneck` and `Decoder`; `Generator` and `Discriminator`; the layers
`ChannelwiseFullyConnected` and `GroupedBatchNorm2d` with `fold_statistics`, `discard_statistics` and `recomputed_statistics`;
`keyed_uniforms` and `keyed_normals`.
"""

from __future__ import annotations

from pipeline.model.batch_norm import GroupedBatchNorm2d, discard_statistics, fold_statistics, recomputed_statistics
from pipeline.model.channelwise import Bottleneck, ChannelwiseFullyConnected
from pipeline.model.decoder import Decoder
from pipeline.model.discriminator import Discriminator
from pipeline.model.encoder import Encoder
from pipeline.model.features_network import FeaturesNetwork
from pipeline.model.inpainting_network import Generator
from pipeline.model.sample_random import keyed_normals, keyed_uniforms

__all__ = [
    "Encoder",
    "ChannelwiseFullyConnected",
    "Bottleneck",
    "Decoder",
    "FeaturesNetwork",
    "Generator",
    "Discriminator",
    "GroupedBatchNorm2d",
    "fold_statistics",
    "discard_statistics",
    "recomputed_statistics",
    "keyed_uniforms",
    "keyed_normals",
]
