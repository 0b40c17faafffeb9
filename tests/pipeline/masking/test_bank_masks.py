"""Masks of a bank of shapes, and means that are configured: of real objects, at every key, within the limits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import recipes
from pipeline.config import parse, to_mapping
from pipeline.mapping import ConfigError
from pipeline.masking import MaskConfig, RandomRegion, bank_of, mask_source
from pipeline.masking.bank import Bank, simplified
from pipeline.masking.statistics import measure
from shards.__main__ import main
from shards.errors import ShapesError, StoreError
from shards.keyed import key_of
from shards.shapes.bank import Provenance, make_bank, write_bank
from shards.shapes.silhouette import Silhouette
from tests.pipeline.masking.banks import OUTLINES, bank_file

Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture
def real_bank(data_folder: Path, made_once: Made) -> str:
    """The objects of 100 real label pictures."""

    def make(folder: Path) -> None:
        folder.mkdir()
        labels = data_folder / "bsds_voc_layout" / "VOC2012"
        assert main(["shapes", str(labels), str(folder / "bank.safetensors"), "--split", "val"]) == 0

    return str(made_once("bank of real shapes", make) / "bank.safetensors")


def test_ten_thousand_masks_of_real_shapes_keep_what_is_configured(real_bank: str) -> None:
    config = MaskConfig(shapes=real_bank, min_fraction=0.1, mean_fraction=0.175, max_fraction=0.25)
    found = measure(mask_source(config), 64, 10_000)
    assert int(0.1 * 64 * 64) <= found.least * 64 * 64
    assert found.most * 64 * 64 <= int(0.25 * 64 * 64)
    assert found.mean == pytest.approx(0.175, rel=0.02)
    assert 0.05 <= found.rarest <= found.commonest <= 0.5
    assert found.repeated == 0
    assert found.rectangles < 0.001


@pytest.mark.parametrize(
    ("least", "mean", "most", "shapes"),
    [(0.1, 0.2, 0.25, True), (0.05, 0.1, 0.2, False), (0.1, None, 0.25, True)],
)
def test_a_mean_is_kept_by_real_and_by_generated_shapes(
    least: float, mean: float | None, most: float, shapes: bool, real_bank: str
) -> None:
    config = MaskConfig(shapes=real_bank if shapes else "", min_fraction=least, mean_fraction=mean, max_fraction=most)
    found = measure(mask_source(config), 32, 4000)
    assert int(least * 32 * 32) <= found.least * 32 * 32
    assert found.most * 32 * 32 <= int(most * 32 * 32)
    assert found.mean == pytest.approx(mean or 0.165, rel=0.02 if mean else 0.05)
    assert found.repeated == 0


def test_masks_of_a_bank_have_not_changed(tmp_path: Path) -> None:
    """A change here changes every run with a bank that is resumed: then say so in the release notes, and renew the hash."""
    digest, url = hashlib.sha256(), str(tmp_path / "bank")
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ragged = np.rint(np.column_stack([np.cos(angles), np.sin(angles)]) * (200 + np.arange(400) * 7 % 13)[:, None] + 220)
    hole = ((ragged - 220) * [0.3, 0.2] + 240)[::-1]
    shapes = [[np.array(points)] for points in OUTLINES] + [[ragged, hole]]  # the last one is simplified before it is pasted
    write_bank(url, make_bank([[contour.astype(np.int16) for contour in shape] for shape in shapes], Provenance("a test")))
    for mean, (height, width) in ((None, (64, 48)), (0.18, (32, 32))):
        source = RandomRegion(mean_fraction=mean, bank=Bank(url))
        mask = np.empty((height, width), np.bool_)
        for key in range(40):
            source.draw(key_of(key), mask)
            digest.update(mask.tobytes())
    assert digest.hexdigest() == "54c0dc27c12ba95a86b780ec803a44f03e8d271463a37f99d26ad949c75d24c6"


def test_the_same_outlines_at_another_url_give_the_same_masks_and_others_do_not(tmp_path: Path) -> None:
    urls = [bank_file(tmp_path / "one"), bank_file(tmp_path / "two"), bank_file(tmp_path / "three", [[0, 0], [9, 0], [9, 9], [0, 9]])]
    masks = np.empty((3, 64, 64), np.bool_)
    for url, mask in zip(urls, masks, strict=True):
        mask_source(MaskConfig(shapes=url)).draw(3, mask)
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_simplified_outlines_stay_near_and_keep_their_holes() -> None:
    angles = np.linspace(0, 2 * np.pi, 600, endpoint=False)
    ragged = np.column_stack([np.cos(angles), np.sin(angles)]) * (100 + np.arange(600) % 2)[:, None]
    hole = np.array([[-20, -20], [-20, 20], [20, 20], [20, -20]])
    silhouette = Silhouette.of([ragged, hole])
    simple = simplified(silhouette)
    assert len(simple.outline) < 60
    assert len(simple.breaks) == 1
    reach = np.abs(simple.outline).max() / np.abs(silhouette.outline).max()
    assert reach == pytest.approx(1, abs=0.03)
    # without its low roof the needle would be too long for its area
    needle = Silhouette.of([np.array([[0, 0], [2580, 0], [2580, 10], [1290, 12], [0, 10]])])
    assert np.array_equal(simplified(needle).outline, needle.outline)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "block", "shapes": "x"}, "shapes: needs kind 'region', this is 'block'"),
        ({"kind": "central", "mean_fraction": 0.2}, "mean_fraction: needs kind 'region', this is 'central'"),
        ({"mean_fraction": 0.1}, r"mean_fraction: 0\.1 is not between min_fraction \(0\.1\) and max_fraction \(0\.25\)"),
        ({"mean_fraction": 0.3}, r"mean_fraction: 0\.3 is not between"),
        ({"noise_fractions": (0.1, 0.3)}, "noise_fractions: needs kind 'noise_pattern', this is 'region'"),
        ({"kind": "noise_pattern", "noise_fractions": (0.3, 0.2)}, "noise_fractions: 0.3 and 0.2 are not the smallest and the largest"),
        ({"kind": "noise_pattern", "max_fraction": 0.3}, "max_fraction: a noise pattern has limits of its own. Set noise_fractions"),
        ({"kind": "noise_pattern", "min_fraction": 0.05}, "min_fraction: a noise pattern has limits of its own. Set noise_fractions"),
    ],
)
def test_settings_that_no_mask_uses_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MaskConfig(**settings)  # type: ignore[arg-type]


def test_more_shapes_than_masks_can_be_drawn_from_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.masking.bank.MOST_SHAPES", 2)
    config = parse(recipes.SETTINGS, ["--data.shards", "x", "--method.width", "12", "--method.mask.shapes", bank_file(tmp_path / "bank")])
    with pytest.raises(ConfigError, match=r"^method\.mask\.shapes: .*bank holds 3 shapes, and masks are drawn from at most 2\. Make"):
        recipes.make("features", config.method, 0)


def test_a_mean_that_the_limits_leave_no_room_for_is_refused_by_the_setting() -> None:
    config = parse(recipes.SETTINGS, ["--data.shards", "x", "--method.width", "12", "--method.mask.mean_fraction", "0.245"])
    with pytest.raises(ConfigError, match=r"^method\.mask\.mean_fraction: 0\.245 can't be the mean of masks of 227 x 227 pixels"):
        recipes.make("features", config.method, 0)


def test_a_bank_is_read_by_its_expanded_name_and_shown_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank_file(tmp_path / "b$nk")
    monkeypatch.setenv("BANKS", str(tmp_path))
    config = parse(recipes.SETTINGS, ["--data.shards", "x", "--method.width", "12", "--method.mask.shapes", "$BANKS/b$$nk"])
    assert config.method.mask.shapes == str(tmp_path / "b$nk")
    recipe = recipes.make("features", config.method, 0, {"profile": "of the pictures, which lie in a bucket"})
    bank = bank_of(recipe.mask)
    assert bank is not None
    assert bank.options == {"profile": "of the pictures, which lie in a bucket"}
    assert len(bank.content.silhouettes) == 3
    assert to_mapping(config)["method"]["mask"]["shapes"] == str(tmp_path / "b$$nk")
    signed = parse(recipes.SETTINGS, ["--data.shards", "x", "--method.mask.shapes", "https://me:secret@host/bank?signature=secret"])
    assert to_mapping(signed)["method"]["mask"]["shapes"] == "https://host/bank"


def test_the_options_of_the_pictures_do_not_fit_another_store() -> None:
    bank = Bank("https://127.0.0.1:1/bank")
    bank.options, bank.setting = {"anon": "true"}, "method.mask.shapes"
    with pytest.raises(StoreError, match=r"^method\.mask\.shapes: https://127.*options of the pictures' store; .*copy the bank to this"):
        _ = bank.content


@pytest.mark.parametrize("recipe", ["features", "inpainting"])
def test_a_bank_that_is_gone_stops_a_run_and_no_use_of_its_networks(recipe: str, tmp_path: Path) -> None:
    settings = ["--recipe", recipe, "--data.shards", "x", "--method.mask.kind", "region", "--method.mask.overlap", "0"]
    settings += ["--method.width", "12", "--method.mask.shapes", str(tmp_path / "gone")]
    config = parse(recipes.SETTINGS, settings)
    with pytest.raises(ShapesError, match=r"^method\.mask\.shapes: give .* moved\. /.*gone: no such file\. Make .* SRC /\S+/gone$"):
        recipes.make(recipe, config.method, 0)
    made = recipes.make(recipe, config.method, 0, draws_masks=False)
    assert bank_of(made.mask) is not None
    without = parse(recipes.SETTINGS, ["--recipe", "autoencoder", *settings[2:]])  # masks nothing, so that no bank is needed
    assert recipes.make("autoencoder", without.method, 0).mask is None
