"""The pixels of a sample that are dropped (section 3.2).

In: a random 64-bit key for the sample and epoch, and the bool array (H, W) of the sample's slot in the batch. Out: that array with True
where pixels are dropped. A mask is a pure function of the key and the shape, so that it depends on neither ranks, threads nor
interruptions. Any object with `draw(key, out)` is a `MaskSource`; those of the paper are `CentralRegion`, `RandomBlock` and
`RandomRegion`, that of its released code is `NoisePattern`, and `mask_source` makes the one that a `MaskConfig` names.
`python -m pipeline.masking` draws a sheet of them. See docs/masks.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from pipeline.masking.bank import Bank
from pipeline.masking.block import RandomBlock
from pipeline.masking.central import CentralRegion
from pipeline.masking.coverage import check_fractions, check_mean
from pipeline.masking.noise import NoisePattern, check_noise_fractions
from pipeline.masking.one_mask import OneMask
from pipeline.masking.region import RandomRegion
from pipeline.masking.source import MaskSource
from shards.counting import counted
from shards.shapes.silhouette import Silhouette, generated_silhouettes

__all__ = [
    "Bank",
    "CentralRegion",
    "MaskConfig",
    "MaskSource",
    "NoisePattern",
    "OneMask",
    "RandomBlock",
    "RandomRegion",
    "Silhouette",
    "bank_of",
    "generated_silhouettes",
    "mask_source",
]

_KINDS = ("region", "block", "central", "noise_pattern")
_Fraction = Annotated[float, Interval(gt=0, le=0.5)]


@dataclass(frozen=True)
class MaskConfig:
    """Settings of the dropped pixels."""

    kind: Literal["region", "block", "central", "noise_pattern"] = "region"
    """region: irregular shapes pasted anywhere (the paper's choice for features); block: several squares; central: one fixed
    square in the middle; noise_pattern: smooth noise below a threshold, the released code's stand-in for the region."""
    max_fraction: _Fraction = 0.25
    """Largest fraction of the pixels that is dropped, at most 0.5; with central the fraction of the fixed square."""
    min_fraction: Annotated[float, Interval(gt=0, le=0.25)] = 0.1
    """Smallest fraction of the pixels that is dropped, at most half of the largest; not used with central."""
    mean_fraction: _Fraction | None = None
    """Mean fraction of the pixels that is dropped, kept within 2 %; region only. None leaves it to the shapes: about 0.17 with the
    default limits."""
    noise_fractions: tuple[_Fraction, _Fraction] = (0.2, 0.3)
    """Smallest and largest fraction of the pixels that is dropped, noise_pattern only; other kinds have min_fraction and max_fraction."""
    shapes: str = ""
    """URL of a bank of shapes made by `python -m shards shapes`, region only; empty takes generated shapes. The shapes are part of the
    run's identity. Options of the store are data.storage_options."""
    one_per_batch: bool = False
    """Drop the same pixels of all pictures of a global batch, as the released code does with random regions. Held-back pictures keep
    masks of their own."""
    overlap: Annotated[int, Ge(0)] = 0
    """Pixels on each side of the central square that stay visible although they are predicted too; central only."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(map(repr, _KINDS))}")
        check_fractions(self.min_fraction, self.max_fraction)
        check_noise_fractions(*self.noise_fractions)
        check_mean(self.mean_fraction, self.min_fraction, self.max_fraction)
        if self.overlap < 0:
            raise ValueError(f"overlap: {self.overlap} is negative")
        if self.overlap and self.kind != "central":
            needs = counted(self.overlap, "pixel needs", "pixels need")
            raise ValueError(f"overlap: {needs} kind 'central', this is {self.kind!r}. Set overlap to 0")
        for name in ("mean_fraction", "shapes"):
            if getattr(self, name) and self.kind != "region":
                raise ValueError(f"{name}: needs kind 'region', this is {self.kind!r}. Leave it out, or set the kind")
        if self.noise_fractions != MaskConfig.noise_fractions and self.kind != "noise_pattern":
            raise ValueError(f"noise_fractions: needs kind 'noise_pattern', this is {self.kind!r}. Set min_fraction and max_fraction")
        for name in ("min_fraction", "max_fraction"):
            if getattr(self, name) != getattr(MaskConfig, name) and self.kind == "noise_pattern":
                raise ValueError(f"{name}: a noise pattern has limits of its own. Set noise_fractions, and leave {name} out")


def mask_source(config: MaskConfig) -> MaskSource:
    """Makes the source of masks that a configuration names. A bank of shapes is read when the first mask is drawn."""
    source: MaskSource
    if config.kind == "central":  # one mask for all batches
        return CentralRegion(sqrt(config.max_fraction), config.overlap)
    if config.kind == "noise_pattern":
        source = NoisePattern(*config.noise_fractions)
    elif config.kind == "block":
        source = RandomBlock(config.max_fraction, config.min_fraction)
    else:
        bank = Bank(config.shapes) if config.shapes else None
        source = RandomRegion(config.max_fraction, config.min_fraction, mean_fraction=config.mean_fraction, bank=bank)
    return OneMask(source) if config.one_per_batch else source


def bank_of(source: MaskSource | None) -> Bank | None:
    """Returns the bank of shapes that a source of masks pastes from; None for a source without one."""
    if isinstance(source, OneMask):
        return bank_of(source.source)
    return source.bank if isinstance(source, RandomRegion) else None
