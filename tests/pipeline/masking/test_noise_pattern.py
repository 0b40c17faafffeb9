"""The noise pattern: the density of the released code, at any size, as a function of the key."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from pipeline.masking import MaskConfig, NoisePattern, mask_source
from pipeline.masking.noise import canvas
from pipeline.masking.statistics import measure
from shards.keyed import key_of


def test_the_pattern_drops_about_17_percent_in_cells_of_17_pixels() -> None:
    pattern = canvas()
    assert pattern.shape == (5000, 5000)
    assert pattern.mean() == pytest.approx(0.169, abs=0.003)
    signs = pattern[::25] - pattern.mean()
    near, far = ((signs[:, :-shift] * signs[:, shift:]).mean() / signs.var() for shift in (8, 34))
    assert near > 0.4  # half a cell away mostly the same
    assert abs(far) < 0.05  # two cells away independent
    assert not pattern.flags.writeable


@pytest.mark.parametrize(("size", "mean"), [(64, 0.241), (128, 0.229)])
def test_masks_have_the_density_of_the_released_code(size: int, mean: float) -> None:
    found = measure(mask_source(MaskConfig(kind="noise_pattern")), size, 2000)
    assert 0.2 <= found.least <= found.most <= 0.3
    assert found.mean == pytest.approx(mean, rel=0.02)
    assert 0.05 <= found.rarest <= found.commonest <= 0.5
    assert found.repeated == 0


def test_about_one_window_in_five_keeps_the_limits_at_128_pixels() -> None:
    sums = cv2.integral(canvas().view(np.uint8))[::16, ::16]
    densities = (sums[8:, 8:] - sums[:-8, 8:] - sums[8:, :-8] + sums[:-8, :-8]) / 128**2
    kept = densities[(densities >= 0.2) & (densities <= 0.3)]
    assert kept.size / densities.size == pytest.approx(0.233, abs=0.01)
    mask = np.empty((128, 128), np.bool_)
    drawn, source = list[float](), NoisePattern()
    for key in range(1500):
        source.draw(key_of(key), mask)
        drawn.append(float(mask.mean()))
    assert np.mean(drawn) == pytest.approx(kept.mean(), abs=0.005)  # the list of places gives what drawing again does
    assert np.quantile(drawn, [0.25, 0.5, 0.75]) == pytest.approx(np.quantile(kept, [0.25, 0.5, 0.75]), abs=0.008)


def test_a_mask_is_a_function_of_key_and_shape_and_has_not_changed() -> None:
    """A change here changes every run that is resumed: then say so in the release notes, and renew the hash."""
    digest, source = hashlib.sha256(), NoisePattern()
    batch = np.zeros((3, 64, 48), np.bool_)
    for key in range(40):
        source.draw(key_of(key), batch[1])
        digest.update(batch[1].tobytes())
        again = np.empty((64, 48), np.bool_)
        source.draw(key_of(key), again)
        assert np.array_equal(batch[1], again)
    assert not batch[0].any()
    assert not batch[2].any()
    assert digest.hexdigest() == "a88b08a593f79c9a0b1c0e1c6dfb8871c36d95f952b1615627fc2030438772b8"


def test_all_four_mirror_images_are_drawn() -> None:
    source, mask, seen = NoisePattern(), np.empty((64, 64), np.bool_), set[tuple[bool, bool]]()
    source.draw(0, mask)
    places = source._places[64, 64]
    source._places[64, 64] = places[:1]  # one window, so that only its mirror images are left
    top, left = divmod(int(places[0]), 5000)
    window = canvas()[top : top + 64, left : left + 64]
    for key in range(40):
        source.draw(key, mask)
        seen |= {(a < 0, b < 0) for a in (1, -1) for b in (1, -1) if np.array_equal(mask, window[::a, ::b])}
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("limits", "size", "message"),
    [
        ((0.2, 0.3), (5001, 64), "noise_fractions: no window of 5001 x 64 pixels .* because the pattern is 5000 x 5000"),
        ((0.45, 0.5), (512, 512), "noise_fractions: no window of 512 x 512 pixels drops 0.45 to 0.5 of them. About 17 %"),
    ],
)
def test_limits_that_no_window_keeps_are_refused(limits: tuple[float, float], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        NoisePattern(*limits).draw(0, np.empty(size, np.bool_))
