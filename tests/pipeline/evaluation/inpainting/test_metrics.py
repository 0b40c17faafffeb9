"""Figures of fills against scikit-image's with the range given, and intervals against SciPy's."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from pipeline.evaluation.inpainting.metrics import FIGURES, LARGEST_PSNR, Truth, paste
from pipeline.evaluation.probe.intervals import mean, student


def drawn(draw: random.Random, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, a mask of one or two rectangles that may touch the border, and a fill with values beyond [0, 1]."""
    values = np.random.default_rng(draw.randrange(1 << 32))
    picture = values.integers(0, 256, (height, width, 3), np.uint8)
    picture[: height // 2] = picture[:1, :1]  # a flat part, where SSIM's variances are 0
    mask = np.zeros((height, width), np.bool_)
    for _ in range(draw.randint(1, 2)):
        top, left = draw.randrange(height), draw.randrange(width)
        mask[top : top + draw.randint(1, height), left : left + draw.randint(1, width)] = True
    mask[draw.randrange(height), draw.randrange(width)] ^= True
    return picture, mask, (1.4 * values.random((height, width, 3)) - 0.2).astype(np.float32)


def test_figures_equal_those_of_scikit_image_wherever_the_hole_lies(draw: random.Random) -> None:
    for _ in range(20):
        picture, mask, fill = drawn(draw, draw.randint(11, 64), draw.randint(11, 64))
        if mask.all() or not mask.any():
            continue
        found = dict(zip(FIGURES, Truth(picture, mask).measure(fill), strict=True))
        truth = picture / 255
        whole = np.where(mask[..., None], fill.astype(np.float64).clip(0, 1), truth)
        expected = {
            "l1": 100 * np.abs(whole[mask] - truth[mask]).mean(),
            "l2": 100 * mean_squared_error(truth[mask], whole[mask]),
            "psnr": peak_signal_noise_ratio(truth[mask], whole[mask], data_range=1),
            "ssim": structural_similarity(
                truth, whole, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            ),
            "whole_l1": 100 * np.abs(whole - truth).mean(),
            "whole_l2": 100 * mean_squared_error(truth, whole),
            "whole_psnr": peak_signal_noise_ratio(truth, whole, data_range=1),
        }
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_a_perfect_fill_has_the_stated_largest_psnr_and_hidden_values_do_not_count(draw: random.Random) -> None:
    picture, mask, fill = drawn(draw, 24, 30)
    mask[:] = False
    mask[3:9, 20:30] = True
    perfect = np.where(mask[..., None], picture / np.float32(255), fill).astype(np.float32)
    found = dict(zip(FIGURES, Truth(picture, mask).measure(perfect), strict=True))
    assert (found["psnr"], found["whole_psnr"]) == (LARGEST_PSNR, LARGEST_PSNR)
    assert found["ssim"] == pytest.approx(1, abs=1e-9)
    assert found["l1"] == pytest.approx(0, abs=1e-5)
    assert (paste(picture, mask, perfect) == picture).all()


def test_a_picture_smaller_than_the_window_has_no_ssim(draw: random.Random) -> None:
    picture, mask, fill = drawn(draw, 10, 40)
    mask[:] = False
    mask[4, 4] = True
    found = dict(zip(FIGURES, Truth(picture, mask).measure(fill), strict=True))
    assert np.isnan(found["ssim"])
    assert np.isfinite(found["l1"])


def test_intervals_of_means_are_students(draw: random.Random) -> None:
    for degrees in (*range(1, 30), 100, 10_000):
        assert student(0.975, degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)
    values = np.random.default_rng(draw.randrange(1 << 32)).normal(3, 2, 40)
    found, expected = mean(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.lower, found.upper) == pytest.approx((values.mean(), expected.low, expected.high), rel=1e-3)
    alone = mean(values[:1])
    assert (alone.value, alone.lower, alone.upper) == (values[0], -np.inf, np.inf)
