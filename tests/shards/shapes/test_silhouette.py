"""Shapes of any origin have unit area around their centre; generated ones differ and do not cross themselves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from shards.shapes.silhouette import Silhouette, generated_silhouettes

SQUARE = np.array([[0, 0], [10, 0], [10, 10], [0, 10]])
HOLE = np.array([[3, 3], [3, 7], [7, 7], [7, 3]])  # the other way round


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
