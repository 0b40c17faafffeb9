"""Figures of painted pictures, by hand."""

from __future__ import annotations

import pytest
import torch

from pipeline import figures


def test_errors_count_dropped_pixels_alone() -> None:
    truth = torch.zeros(1, 3, 2, 2)
    prediction = truth.clone()
    prediction[:, :, 0, 0], prediction[:, :, 1, 1] = 0.5, 1.0
    mask = torch.tensor([[[[True, True], [False, False]]]])
    found = figures.errors(prediction, truth, mask)
    assert found.l1.tolist() == pytest.approx([25.0])  # (0.5 + 0) / 2
    assert found.l2.tolist() == pytest.approx([12.5])
    assert found.psnr.tolist() == pytest.approx([9.0309], abs=1e-4)  # 10 log10(1 / 0.125)


def test_a_picture_without_a_dropped_pixel_is_judged_whole() -> None:
    truth, mask = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    assert figures.errors(truth + 0.1, truth, mask).l1.tolist() == pytest.approx([10.0])
    assert figures.visible_pixels(~mask).all(), "and one without a visible pixel has the mean of them all"


def test_values_beyond_the_range_are_clipped_and_a_perfect_picture_has_a_finite_psnr() -> None:
    truth, mask = torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    found = figures.errors(truth * 7, truth, mask)
    assert (found.l1.item(), found.psnr.item()) == (0.0, pytest.approx(100.0))


def test_the_mean_colour_is_that_of_the_chosen_pixels() -> None:
    pictures = torch.arange(12.0).view(1, 3, 2, 2)
    chosen = torch.tensor([[[[True, False], [False, True]]]])
    assert figures.mean_colour(pictures, chosen).tolist() == [[1.5, 5.5, 9.5]]
