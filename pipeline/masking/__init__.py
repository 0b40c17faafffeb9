"""The pixels of a sample that are dropped (section 3.2).

In: a random 64-bit key for the sample and epoch, and the bool array (H, W) of the sample's slot in the batch. Out: that array with True
where pixels are dropped. A mask is a pure function of the key and the shape, so that it depends on neither ranks, threads nor
interruptions. Any object with `draw(key, out)` is a `MaskSource`; those of the paper are `CentralRegion`, `RandomBlock` and
`RandomRegion`, and `mask_source` makes the one that a `MaskConfig` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from pipeline.masking.block import RandomBlock
from pipeline.masking.central import CentralRegion
from pipeline.masking.coverage import check_fractions
from pipeline.masking.region import RandomRegion
from pipeline.masking.source import MaskSource
from shards.counting import counted
from shards.shapes.silhouette import Silhouette, generated_silhouettes

__all__ = [
    "CentralRegion",
    "MaskConfig",
    "MaskSource",
    "RandomBlock",
    "RandomRegion",
    "Silhouette",
    "generated_silhouettes",
    "mask_source",
]


@dataclass(frozen=True)
class MaskConfig:
    """Settings of the dropped pixels."""

    kind: Literal["region", "block", "central"] = "region"
    """region: irregular shapes pasted anywhere (the paper's choice for features); block: several squares; central: one fixed
    square in the middle."""
    max_fraction: Annotated[float, Interval(gt=0, le=0.5)] = 0.25
    """Largest fraction of the pixels that is dropped, at most 0.5; with central the fraction of the fixed square."""
    min_fraction: Annotated[float, Interval(gt=0, le=0.25)] = 0.1
    """Smallest fraction of the pixels that is dropped, at most half of the largest; not used with central."""
    overlap: Annotated[int, Ge(0)] = 0
    """Pixels on each side of the central square that stay visible although they are predicted too; central only."""

    def __post_init__(self) -> None:
        if self.kind not in ("region", "block", "central"):
            raise ValueError(f"kind: {self.kind!r} is none of 'region', 'block', 'central'")
        check_fractions(self.min_fraction, self.max_fraction)
        if self.overlap < 0:
            raise ValueError(f"overlap: {self.overlap} is negative")
        if self.overlap and self.kind != "central":
            raise ValueError(f"overlap: {counted(self.overlap, 'pixel needs', 'pixels need')} kind 'central', this is {self.kind!r}")


def mask_source(config: MaskConfig) -> RandomRegion | RandomBlock | CentralRegion:
    """Makes the source of masks that a configuration names."""
    if config.kind == "central":
        return CentralRegion(sqrt(config.max_fraction), config.overlap)
    generator = RandomBlock if config.kind == "block" else RandomRegion
    return generator(config.max_fraction, config.min_fraction)
