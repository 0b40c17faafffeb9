"""An outline encloses the pixels of its object: every part, without its holes, cut by the border or not, within the tolerance."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.shapes import tracing
from shards.shapes.silhouette import Silhouette, generated_silhouettes
from shards.shapes.tracing import RAGGED, SMALL, THIN, WIDE, Contours, contours_of, trace


def covered(contours: Contours, height: int, width: int) -> np.ndarray:
    """Pixels whose centres an odd number of contours goes around, by counting the edges to the right of each centre."""
    y, x = np.mgrid[1 : 2 * height : 2, 1 : 2 * width : 2]
    inside = np.zeros((height, width), np.bool_)
    for contour in contours:
        for (x0, y0), (x1, y1) in zip(contour.astype(int), np.roll(contour, -1, axis=0).astype(int), strict=True):
            crossed = (y0 <= y) != (y1 <= y)
            inside ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / ((y1 - y0) or 1))
    return inside


def area(contours: Contours) -> float:
    """Area in pixels; a contour that runs the other way round counts against the others."""
    total = 0.0
    for contour in contours:
        x, y = contour.T.astype(float)
        total += float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 8
    return abs(total)


def shape(name: str) -> np.ndarray:
    """Label picture of one object, index 3."""
    labels = np.zeros((40, 50), np.uint8)
    if name == "one pixel wide":
        labels[20, 10:30] = 3
    else:
        labels[10:30, 10:40] = 3
    if name == "hole":
        labels[15:25, 15:30] = 0
    elif name == "object in the hole":
        labels[15:25, 15:30] = 0
        labels[18:22, 19:25] = 3
    elif name == "parts":
        labels[:, 22:27] = 0
    elif name == "parts that touch at a corner":
        labels[10:20, 10:25] = labels[20:30, 25:40] = 0
    elif name == "cut by the border":
        labels[:, 40:] = labels[10:30, :10] = 3
        labels[0] = 3
    elif name == "whole picture":
        labels[:] = 3
    elif name == "void inside":
        labels[12:16, 12:16] = 255
    return labels


@pytest.mark.parametrize(
    ("name", "contours"),
    [
        *(("plain", 1), ("one pixel wide", 1), ("hole", 2), ("object in the hole", 3), ("parts", 2), ("parts that touch at a corner", 1)),
        *(("cut by the border", 1), ("whole picture", 1), ("void inside", 2)),
    ],
)
def test_every_object_is_one_shape(name: str, contours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "TOLERANCE", 0.01)
    labels = shape(name)
    traced = trace(labels, 255, 1)
    assert (traced.objects, len(traced.shapes), list(traced.left_out)) == (1, 1, [])
    assert traced.void_pixels == (labels == 255).sum()
    mask = labels == 3
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert len(traced.shapes[0]) == contours
    assert np.array_equal(covered(traced.shapes[0], *box.shape), box)
    assert area(traced.shapes[0]) == pytest.approx(box.sum(), abs=contours / 2)


def test_objects_come_in_the_order_of_their_indices_and_the_rest_is_counted_by_cause() -> None:
    labels = np.zeros((400, 17_000), np.uint16)
    labels[0:20, 0:20] = 900
    labels[0:20, 30:60] = 7
    labels[0:19, 70:90] = 1000  # 380 pixels
    labels[100, 0:500] = 2  # a line
    labels[200:204, 0:16_384] = 3
    labels[300:310, :2] = 65_535
    labels[300:303, 5:10] = 5
    labels[399, ::1000] = 5  # scattered
    traced = trace(labels, 65_535, 400)
    assert traced.objects == 6
    assert [area(each) for each in traced.shapes] == [599.5, 399.5]
    assert sorted(traced.left_out) == sorted([SMALL, SMALL, THIN, WIDE])
    assert traced.void_pixels == 20
    noise = np.random.default_rng(1).integers(0, 2, (90, 90)).astype(np.uint8)
    assert list(trace(noise, None, 400).left_out) == [RAGGED]
    assert trace(labels, None, 1).objects == 7
    assert THIN in trace(labels, 65_535, 30).left_out


@pytest.mark.parametrize("void", [255, None])
def test_a_picture_may_be_without_objects(void: int | None) -> None:
    traced = trace(np.zeros((9, 9), np.uint8), void, 1)
    assert (traced.objects, list(traced.shapes), list(traced.left_out), traced.void_pixels) == (0, [], [], 0)


@pytest.mark.parametrize("pixels", [400, 2_000, 10_000, 60_000])
def test_simplified_outlines_keep_the_area_and_the_place(pixels: int) -> None:
    errors = []
    for silhouette in generated_silhouettes()[:40]:
        outline = silhouette.outline * np.sqrt(pixels)
        corner = np.floor(outline.min(axis=0))
        canvas = np.zeros(np.ceil(np.ptp(outline, axis=0))[::-1].astype(int) + 4, np.uint8)
        cv2.fillPoly(canvas, [np.rint(outline - corner).astype(np.int32)], 1)
        contours = contours_of(canvas)
        errors.append(area(contours) / canvas.sum() - 1)
        if pixels <= 2_000:
            assert (covered(contours, *canvas.shape) != canvas).sum() < 0.06 * canvas.sum() * np.sqrt(400 / pixels)
        assert sum(map(len, contours)) < 150
    assert np.abs(errors).max() < 0.04
    assert abs(np.mean(errors)) < 0.01


def test_outlines_of_real_objects_keep_the_area(data_folder: Path) -> None:
    errors = []
    for file in sorted((data_folder / "bsds_voc_layout" / "VOC2012" / "SegmentationObject").glob("*.png"))[:20]:
        labels = np.array(Image.open(file))
        traced = trace(labels, 255, 1)
        indices = [index for index in np.unique(labels).tolist() if index not in (0, 255)]
        assert traced.objects == len(indices) == len(traced.shapes)
        for index, contours in zip(indices, traced.shapes, strict=True):
            errors.append(area(contours) / (labels == index).sum() - 1)
            Silhouette.of(contours)
    assert len(errors) > 50
    assert np.abs(errors).max() < 0.03
    assert abs(np.mean(errors)) < 0.01
