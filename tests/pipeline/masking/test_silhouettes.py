"""Shapes of any origin can be pasted: generated ones, ones with holes, and the outlines of a real segmentation data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.masking import RandomRegion, Silhouette, generated_silhouettes

SQUARE = np.array([[0, 0], [10, 0], [10, 10], [0, 10]])
HOLE = np.array([[3, 3], [3, 7], [7, 7], [7, 3]])  # the other way round


def drawn(silhouettes: tuple[Silhouette, ...], count: int, size: int = 96) -> np.ndarray:
    generator, masks = RandomRegion(silhouettes=silhouettes), np.zeros((count, size, size), np.bool_)
    for key, mask in enumerate(masks):
        generator.draw(key, mask)
    return masks


def test_a_hole_stays_visible() -> None:
    ring = Silhouette.of([SQUARE, HOLE])
    masks = drawn((ring,), 40)
    enclosed = [cv2.connectedComponents(1 - mask.astype(np.uint8), connectivity=4)[0] > 2 for mask in masks]
    assert np.mean(enclosed) > 0.3  # the rest is cut by the border or covered by another piece
    assert 0.15 < masks.mean() < 0.25


def test_shapes_that_the_border_cuts_almost_always_still_keep_the_limits() -> None:
    needle = Silhouette.of([np.array([[0, 0], [200, 0], [200, 1], [0, 1]])])
    covered = drawn((needle,), 200).mean(axis=(1, 2))
    assert 0.099 <= covered.min() <= covered.max() <= 0.25


def test_every_shape_of_a_large_bank_is_used() -> None:
    generator = RandomRegion(silhouettes=generated_silhouettes(5000))
    generator.draw(1, np.zeros((16, 16), np.bool_))
    assert all(len(polygons) >= 5000 for polygons in generator._prepared[16, 16].polygons)


def test_outlines_of_real_objects_can_be_pasted(data_folder: Path) -> None:
    silhouettes = []
    for file in sorted((data_folder / "bsds_voc_layout" / "VOC2012" / "SegmentationObject").glob("*.png"))[:6]:
        labels = np.array(Image.open(file))
        for region in np.unique(labels)[1:-1].tolist():
            contours, _ = cv2.findContours((labels == region).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            contours = [contour for contour in contours if len(contour) > 3]
            if (labels == region).mean() > 0.01 and contours:
                silhouettes.append(Silhouette.of(contours))
    assert len(silhouettes) > 10
    masks = drawn(tuple(silhouettes), 300)
    assert 0.099 <= masks.mean(axis=(1, 2)).min() <= masks.mean(axis=(1, 2)).max() <= 0.25
    assert masks.mean() > 0.15
    assert len({mask.tobytes() for mask in masks}) == 300


def test_a_generator_without_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^silhouettes: "):
        RandomRegion(silhouettes=())
