"""The benchmark of the losses: its pictures are divided by photograph, its figures are right, and its budget is one that the training
accepts."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks import inpainting, inpainting_pictures, inpainting_tables
from monitoring.run_files import GRID_TEXT
from pipeline.evaluation.probe.intervals import Interval

HOLE = np.zeros((8, 10), np.bool_)
HOLE[2:6, 3:7] = True


def energy(picture: NDArray[np.uint8], hole: NDArray[np.bool_]) -> float:
    """The mean squared gradient pixel by pixel, with loops."""
    across, down = [], []
    for row, column in np.argwhere(hole):
        here = picture[row, column] / 255
        for values, neighbour in ((across, (row, column + 1)), (down, (row + 1, column))):
            if neighbour[0] < hole.shape[0] and neighbour[1] < hole.shape[1] and hole[neighbour]:
                values.append(np.square(picture[neighbour] / 255 - here))
    return float(1000 * (np.mean(across) + np.mean(down)))


def test_the_gradient_energy_is_that_of_loops_and_looks_at_no_pixel_outside_the_hole(draw: random.Random) -> None:
    numbers = np.random.default_rng(draw.randrange(1 << 32))
    pictures = numbers.integers(0, 256, (3, *HOLE.shape, 3), np.uint8)
    found = inpainting_tables.gradient_energy(pictures, HOLE)
    np.testing.assert_allclose(found, [energy(picture, HOLE) for picture in pictures], rtol=1e-12)
    outside = np.where(HOLE[..., None], pictures, 255 - pictures)
    np.testing.assert_array_equal(inpainting_tables.gradient_energy(outside, HOLE), found)
    flat = np.full_like(pictures, 90)
    assert inpainting_tables.gradient_energy(flat, HOLE).tolist() == [0, 0, 0]
    smooth = np.asarray((pictures.astype(int) + 3 * 128) // 4, np.uint8)
    assert (inpainting_tables.gradient_energy(smooth, HOLE) < found / 8).all()


def photographs(folder: Path, numbers: np.random.Generator) -> Path:
    """Three photographs, of which one is held back, in PASCAL VOC's layout."""
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, size in {"a": (200, 230), "b": (320, 240), "c": (288, 192)}.items():
        Image.fromarray(numbers.integers(0, 256, (*size, 3), np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
    for split, names in {"train": "a\nb\n", "val": "c\n"}.items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    return folder


def test_crops_are_divided_by_photograph_and_those_held_back_do_not_overlap(tmp_path: Path, draw: random.Random) -> None:
    source = photographs(tmp_path / "VOC2012", np.random.default_rng(draw.randrange(1 << 32)))
    names: dict[str, set[str]] = {}
    for split in ("train", "val"):
        inpainting.cut_photographs(source, split, tmp_path / split)
        files = sorted((tmp_path / split).iterdir())
        assert {Image.open(each).size for each in files} == {(inpainting.CROP, inpainting.CROP)}
        names[split] = {each.name.split("_")[0] for each in files}
    assert names == {"train": {"a", "b"}, "val": {"c"}}
    assert len(list((tmp_path / "val").iterdir())) == 2  # 288 x 192 pixels hold two squares of 128 that don't overlap


def test_crops_cover_a_picture_at_every_stride() -> None:
    picture = np.arange(5 * 9 * 3, dtype=np.uint8).reshape(5, 9, 3)
    found = list(inpainting.crops(picture, 4, 4))
    assert [tuple(each[0, 0]) for each in found] == [tuple(picture[0, 0]), tuple(picture[0, 4])]
    assert len(list(inpainting.crops(picture, 4, 1))) == 2 * 6
    assert not list(inpainting.crops(picture, 6, 1))


def test_the_budget_is_one_that_the_training_accepts_and_both_losses_share_it() -> None:
    runs = {run.name: run for run in inpainting.read_runs(yaml.safe_load(inpainting.BUDGET.read_text()))}
    data = {split: Path(split) for split in ("train", "val")}
    for data_set, loss, side in (("bsds", "joint", 128), ("tiny_imagenet", "reconstruction", 64)):
        joint, plain = (runs[f"{data_set}_{each}"].words for each in ("joint", "reconstruction"))
        other = {name for name, here, there in zip(joint, joint[1:], plain[1:], strict=False) if here != there}
        assert other == {"--method.reconstruction_weight", "--method.adversarial_weight"}
        config = inpainting.configured(runs[f"{data_set}_{loss}"], data, Path("run"))
        assert (config.method.adversarial_weight > 0) == (loss == "joint")
        hole = inpainting.hole_of(config)
        assert hole.shape == (side, side)
        assert hole.sum() == (side // 2 - 2 * config.method.mask.overlap) ** 2


def written(folder: Path, figures: dict[str, list[float]], numbers: np.random.Generator) -> Path:
    """The files of an evaluation of two pictures: all figures of a method have the same values."""
    names = [*inpainting_tables.FIGURES, *inpainting_tables.WHOLE]
    folder.mkdir()
    with (folder / "pictures.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["picture", "sample_id", "method", *names])
        for picture in range(2):
            lines.writerows([picture, picture, name, *[values[picture]] * len(names)] for name, values in figures.items())
    (folder / "table.json").write_text(json.dumps({"methods": [{"name": name, "title": name.title()} for name in figures]}))
    for name in (*figures, inpainting_tables.TRUTH):
        (folder / "fills" / name).mkdir(parents=True)
        for picture in range(2):
            pixels = numbers.integers(0, 256, (*HOLE.shape, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "fills" / name / f"{picture:09d}.png")
    return folder


def test_tables_have_a_row_a_method_and_compare_picture_by_picture(tmp_path: Path, draw: random.Random) -> None:
    numbers = np.random.default_rng(draw.randrange(1 << 32))
    joint_figures = {"mean": [4.0, 8.0], "nearest_encoder": [9.0, 9.5], "context_encoder": [1.0, 5.1]}
    plain_figures = {"mean": [4.0, 8.0], "nearest_encoder": [7.0, 7.5], "context_encoder": [2.0, 4.0]}
    joint = inpainting_tables.read_evaluation(written(tmp_path / "joint", joint_figures, numbers), "joint", HOLE)
    plain = inpainting_tables.read_evaluation(written(tmp_path / "plain", plain_figures, numbers), "plain", HOLE)
    rows = [line.strip("| ").split(" | ") for line in inpainting_tables.figures_table(joint, [plain]).splitlines()[2:]]
    assert [row[0] for row in rows] == ["Mean", "Nearest_Encoder, joint", "Nearest_Encoder, plain", "**joint**", "**plain**", "truth"]
    assert [row[1].split(" ± ")[0] for row in rows[:-1]] == ["6.00", "9.25", "7.25", "3.05", "3.00"]
    differences = [line.strip("| ").split(" | ") for line in inpainting_tables.differences_table(joint, [plain]).splitlines()[2:]]
    assert [row[0] for row in differences] == ["Mean", "Nearest_Encoder", "plain"]
    assert [row[1].split(" ± ")[0] for row in differences] == ["-2.95", "-6.20", "+0.05"]
    assert differences[0][1].endswith("better")  # both differences are near -3, although the pictures differ by 4
    assert differences[0][3].endswith("worse")  # a lower PSNR
    assert differences[2][1].endswith("not distinguishable")
    truth = inpainting_tables.gradient_energy(inpainting_tables.read_fills(tmp_path / "joint", "truth"), HOLE).mean()
    assert f"truth {truth:.2f}" in inpainting_tables.sharpness_line(joint, plain)


@pytest.mark.parametrize(
    ("name", "lower", "upper", "word"), [("l1", -2, -1, "better"), ("psnr", -2, -1, "worse"), ("ssim", 1, 2, "better")]
)
def test_the_word_about_a_difference(name: str, lower: float, upper: float, word: str) -> None:
    assert inpainting_tables.verdict(name, Interval((lower + upper) / 2, lower, upper)) == word
    assert inpainting_tables.verdict(name, Interval(0.5, -1, 2)) == "not distinguishable"


def test_curves_hold_every_run(tmp_path: Path) -> None:
    for name, level in (("joint", 0.4), ("plain", 0.2)):
        (tmp_path / name).mkdir()
        rows = [{"step": step, "losses": {"generator": {"reconstruction": level / step}}} for step in range(1, 61)]
        (tmp_path / name / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / name / "evaluation.jsonl").write_text('{"step": 0, "l1": 20.0}\n{"step": 60, "l1": 10.0}\n')
    inpainting_pictures.draw_curves(tmp_path / "curves.svg", {name: tmp_path / name for name in ("joint", "plain")})
    text = (tmp_path / "curves.svg").read_text()
    assert text.count("<polyline") == 4
    assert text.count(">joint</text>") == text.count(">plain</text>") == 2


def test_the_grid_has_a_column_for_each_fill_and_each_loss(tmp_path: Path, draw: random.Random) -> None:
    numbers = np.random.default_rng(draw.randrange(1 << 32))
    names = [*inpainting_pictures.COLUMNS, inpainting_tables.NETWORK]
    folders = {loss: written(tmp_path / loss, {name: [1.0, 2.0] for name in names}, numbers) for loss in ("joint", "plain")}
    inpainting_pictures.draw_grid(tmp_path / "grid.png", folders, HOLE)
    with Image.open(tmp_path / "grid.png") as grid:
        geometry = json.loads(grid.text[GRID_TEXT])  # type: ignore[attr-defined]
        pixels = np.asarray(grid)
    heads = [column["name"] for column in geometry["columns"]]
    assert heads == ["context", *inpainting_pictures.COLUMNS.values(), "joint", "plain", "truth"]
    width, height = geometry["cell"]
    times = width // HOLE.shape[1]
    for loss in folders:
        left, top = geometry["columns"][heads.index(loss)]["left"], geometry["rows"][1]["top"]
        cell = pixels[top : top + height : times, left : left + width : times]
        fill = inpainting_tables.read_fills(tmp_path / loss, inpainting_tables.NETWORK)[1]
        np.testing.assert_array_equal(cell[HOLE], fill[HOLE])
