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


def area(silhouette: Silhouette) -> float:
    x, y = silhouette.outline.T
    following = silhouette.following
    return abs(float((x * y[following] - x[following] * y).sum()) / 2)


def test_shapes_have_unit_area_around_their_centre() -> None:
    for silhouette in (Silhouette.of([SQUARE]), Silhouette.of([SQUARE[::-1] * 7 + 100]), *generated_silhouettes()[:50]):
        assert area(silhouette) == pytest.approx(1)
        moved = silhouette.outline + np.array([3, 5])  # the moment of area, by the same sum in another place
        after = moved[silhouette.following]
        cross = moved[:, 0] * after[:, 1] - after[:, 0] * moved[:, 1]
        assert ((moved + after) * cross[:, None]).sum(axis=0) / (3 * cross.sum()) == pytest.approx((3, 5))


def test_a_hole_counts_as_uncovered() -> None:
    ring = Silhouette.of([SQUARE, HOLE])
    assert area(ring) == pytest.approx(1)
    assert np.ptp(ring.outline[:4], axis=0) == pytest.approx(10 / np.sqrt(84))
    assert ring.breaks == (4,)
    masks = drawn((ring,), 40)
    enclosed = [cv2.connectedComponents(1 - mask.astype(np.uint8), connectivity=4)[0] > 2 for mask in masks]
    assert np.mean(enclosed) > 0.3  # the rest is cut by the border or covered by another piece
    assert 0.15 < masks.mean() < 0.25


def test_generated_shapes_differ_and_do_not_cross_themselves() -> None:
    shapes = generated_silhouettes()
    assert len({shape.outline.tobytes() for shape in shapes}) == len(shapes) == 1024
    elongation = []
    for shape in shapes[::8]:
        canvas = np.zeros((400, 400), np.uint8)
        points = np.rint(shape.outline * 50 + 200).astype(np.int32)
        cv2.fillPoly(canvas, [points], 1)
        assert cv2.connectedComponents(1 - canvas)[0] == 2  # even-odd filling would leave holes where the outline crosses itself
        assert canvas.sum() == pytest.approx(2500 * area(shape), rel=0.1)
        _, (width, height), _ = cv2.minAreaRect(points)
        elongation.append(max(width, height) / min(width, height))
    assert max(elongation) > 1.8
    assert min(elongation) < 1.1


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


@pytest.mark.parametrize(
    ("contours", "message"),
    [
        ([], "no outline"),
        ([SQUARE[:2]], "no outline"),
        ([np.array([[0, 0], [5, 5], [9, 9]])], "no outline"),
        ([np.array([[0, 0], [1000, 0], [1000, 1], [0, 1]])], "reach 15.8 times"),
    ],
)
def test_contours_that_can_not_be_pasted_are_refused(contours: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=f"^contours: {message}"):
        Silhouette.of(contours)


def test_a_generator_without_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^silhouettes: "):
        RandomRegion(silhouettes=())
