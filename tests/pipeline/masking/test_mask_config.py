"""The central region, and what a configuration names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.masking import CentralRegion, MaskConfig, NoisePattern, OneMask, RandomBlock, RandomRegion, mask_source


def central(source: Any, height: int, width: int) -> np.ndarray:
    out = np.ones((height, width), np.bool_)
    source.draw(7, out)
    return out


def test_the_features_recipe_drops_a_centred_quarter() -> None:
    mask = central(mask_source(MaskConfig(kind="central")), 227, 227)
    assert mask[57:170, 57:170].all()
    assert mask.sum() == 113 * 113  # 113.5 is rounded down: never above the fraction


def test_the_inpainting_recipe_drops_56_of_128_pixels() -> None:
    mask = central(mask_source(MaskConfig(kind="central", overlap=4)), 128, 128)
    assert mask[36:92, 36:92].all()
    assert mask.sum() == 56 * 56
    assert np.array_equal(mask, central(CentralRegion(0.5, overlap_pixels=4), 128, 128))


def test_a_central_region_has_the_aspect_of_its_image() -> None:
    mask = central(CentralRegion(0.5), 64, 128)
    assert mask[16:48, 32:96].all()
    assert mask.sum() == 32 * 64


def test_a_configuration_names_its_generator() -> None:
    assert mask_source(MaskConfig()) == RandomRegion(0.25, 0.1)
    assert mask_source(MaskConfig(kind="noise_pattern", one_per_batch=True)) == OneMask(NoisePattern(0.2, 0.3))
    assert mask_source(MaskConfig(kind="central", one_per_batch=True)) == CentralRegion(0.5)
    assert mask_source(MaskConfig(kind="block", max_fraction=0.3, min_fraction=0.15)) == RandomBlock(0.3, 0.15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "blocks"}, "kind: 'blocks' is none of"),
        ({"max_fraction": 0.6}, "max_fraction: 0.6"),
        ({"min_fraction": 0.2}, "min_fraction: 0.2"),
        ({"kind": "central", "overlap": -1}, "overlap: -1 is negative"),
        ({"overlap": 4}, "overlap: 4 pixels need kind 'central', this is 'region'. Set overlap to 0"),
    ],
)
def test_settings_that_can_not_be_used_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MaskConfig(**settings)


@pytest.mark.parametrize(("side", "overlap", "field"), [(0.0, 0, "side_fraction"), (1.0, 0, "side_fraction"), (0.5, -1, "overlap_pixels")])
def test_a_central_region_outside_the_image_is_refused(side: float, overlap: int, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        CentralRegion(side, overlap)


def test_an_overlap_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"overlap_pixels: 4 .*16x16"):
        central(CentralRegion(0.5, 4), 16, 16)
